#pragma once

#include <cstdint>
#include <string>

#include "kernels/core/stored_file.h"

namespace braid {

// Part of a file that is to be parsed as JSON, checked for what nlohmann's parser would not refuse: a zero byte, which
// it takes for the end of the text, and more than 1 MiB in which no string or number begins (one that is very long, or
// brackets or spaces only), of which it holds several copies.
// Errors: CheckpointError with file and rule.
std::string read_json_text(const StoredFile& file, int64_t position, int64_t bytes);

// A name from a file, safe and short enough to print: quoted, its first 200 bytes.
std::string shown_name(const std::string& name);

}  // namespace braid
