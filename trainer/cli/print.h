#pragma once

#include <cstdio>
#include <string>

#include "kernels/core/error.h"

namespace braid {

// A line of a command's answer: print_line(path, ": ", count, " tokens").
template <class... Parts>
void print_line(const Parts&... parts) {
  std::fputs((concat(parts...) + "\n").c_str(), stdout);
}
template <class... Parts>
void print_note(const Parts&... parts) {  // beside the answer: on stderr
  std::fputs((concat(parts...) + "\n").c_str(), stderr);
}

// In one line, or `indent` columns for each level. Text that is not UTF-8, as
// names of files may be, is shown as it can.
template <class Json>
void print_json(const Json& json, int indent = -1) {
  print_line(json.dump(indent, ' ', false, Json::error_handler_t::replace));
}

}  // namespace braid
