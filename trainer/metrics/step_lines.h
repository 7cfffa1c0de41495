#pragma once

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"

namespace braid {

// Calls on_line(line) with every line of a run's file, in order: each is a JSON object with a whole number "step". The
// last line is left out where it is none: it was torn by a kill, or is still being written.   `what` a line is: "a line
// of metrics".   Errors: IoError; DataError with path and line, also where on_line finds other JSON than it expects.
template <class Json = nlohmann::json, class OnLine>
void for_each_step_line(const std::string& path, const char* what, OnLine&& on_line) {
  Loud<std::ifstream> in(path);
  check<IoError>(in.is_open(), path, ": cannot be opened: ", reason(errno));
  std::string text;
  const auto has_line = [&] { return reading<IoError>(path, [&] { return bool(std::getline(in, text)); }); };
  for (int64_t number = 1; has_line(); ++number) {
    const Json line = Json::parse(text, nullptr, false);
    if (line.is_discarded() && in.eof()) break;
    const auto refuse = [&] { throw DataError(concat(path, ":", number, ": is not ", what)); };
    if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) refuse();
    try {
      on_line(line);
    } catch (const typename Json::exception&) {
      refuse();
    }
  }
}

}  // namespace braid
