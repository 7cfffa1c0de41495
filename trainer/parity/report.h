#pragma once

#include <string>

#include "trainer/parity/parity.h"

namespace braid {

// A table with a line per tensor, failures marked, and a last line "parity: passed (…)" or "parity: FAILED: …".
std::string to_text(const ParityReport& report, const ParityOptions& options);
// One JSON object; what is not finite becomes null. See docs/parity.md.
std::string to_json(const ParityReport& report, const ParityOptions& options);

}  // namespace braid
