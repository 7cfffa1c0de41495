#pragma once

#include <string>

#include "kernels/core/sha256.h"
#include "tests/file_testing.h"
#include "tests/parallel/thread_ranks.h"

namespace braid::testing {

// A manifest's text with this in front of its last two lines, and the digest that belongs to it.
inline std::string with_digest(const std::string& body) { return body + "\"digest\": \"" + sha256(body) + "\"\n}\n"; }
inline std::string without_digest(const std::string& text) { return text.substr(0, text.rfind("\"digest\"")); }

}  // namespace braid::testing
