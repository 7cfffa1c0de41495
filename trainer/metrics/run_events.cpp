#include "trainer/metrics/run_events.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "trainer/metrics/line_file.h"

namespace braid {
namespace {

std::string path_in(const std::string& run_dir) { return run_dir + "/events.jsonl"; }

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace

bool append_run_event(const std::string& run_dir, const RunEvent& event) {
  const nlohmann::ordered_json line = {
      {"step", event.step}, {"event", event.event}, {"time", utc_now()}, {"text", event.text}};
  try {
    return LineFile(path_in(run_dir)).append(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } catch (const IoError&) {
    return false;
  }
}

std::vector<RunEvent> read_run_events(const std::string& run_dir) {
  std::vector<RunEvent> events;
  const std::string path = path_in(run_dir);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return events;
  std::ifstream in(path);
  std::string text;
  for (int64_t number = 1; std::getline(in, text); ++number) {
    const auto line = nlohmann::json::parse(text, nullptr, false);
    if (line.is_discarded() && in.eof()) break;  // torn by a kill, or still being written
    try {
      events.push_back({line.at("step").get<int64_t>(), line.at("event").get<std::string>(),
                        line.value("text", std::string()), line.value("time", std::string())});
    } catch (const nlohmann::json::exception&) {
      throw DataError(concat(path, ":", number, ": is not an event of a run"));
    }
  }
  return events;
}

}  // namespace braid
