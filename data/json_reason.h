#pragma once

#include <exception>
#include <string>
#include <string_view>

namespace braid {

// What an exception of nlohmann's JSON says, without the library's name for it in front.
inline std::string json_reason(const std::exception& e) {
  const std::string_view text = e.what();
  const size_t name_end = text.find("] ");
  return std::string(text.starts_with("[json.exception.") && name_end != text.npos ? text.substr(name_end + 2) : text);
}

}  // namespace braid
