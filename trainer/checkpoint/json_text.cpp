#include "trainer/checkpoint/json_text.h"

#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/core/error.h"

namespace braid {
namespace {

constexpr size_t kLongestRun = size_t{1} << 20;

void check_runs(const StoredFile& file, int64_t position, const std::string& text) {
  const std::string_view number_begins = "-0123456789", in_number = "-+.eE0123456789";
  size_t run_begin = 0;
  bool is_string = false, is_number = false;  // what text[i] is part of
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_string) {
      if (c == '\\') ++i;
      if (c == '"') is_string = false;
    } else {
      const bool begins = c == '"' || (!is_number && number_begins.find(c) != std::string_view::npos);
      if (begins) run_begin = i;
      is_string = c == '"';
      is_number = (is_number || begins) && in_number.find(c) != std::string_view::npos;
    }
    check<CheckpointError>(i < run_begin + kLongestRun, file.path(), ": no string or number begins in the ",
                           kLongestRun, " bytes behind byte ", position + run_begin);
  }
}

}  // namespace

std::string read_json_text(const StoredFile& file, int64_t position, int64_t bytes) {
  std::string text(static_cast<size_t>(bytes), '\0');
  file.read(text.data(), bytes, position);
  check<CheckpointError>(text.find('\0') == std::string::npos, file.path(), ": holds a zero byte in its JSON text");
  check_runs(file, position, text);
  return text;
}

std::string shown_name(const std::string& name) {
  using Json = nlohmann::json;
  constexpr size_t kLongest = 200;
  const std::string start = name.size() <= kLongest ? name : name.substr(0, kLongest) + "…";
  return Json(start).dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace braid
