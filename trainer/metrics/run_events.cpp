#include "trainer/metrics/run_events.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"
#include "kernels/core/process_info.h"
#include "trainer/metrics/line_file.h"
#include "trainer/metrics/step_lines.h"

namespace braid {
namespace {

std::string path_in(const std::string& run_dir) { return run_dir + "/events.jsonl"; }

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
  for_each_step_line(path, "an event of a run", [&](const nlohmann::json& line) {
    events.push_back({line.at("step").get<int64_t>(), line.at("event").get<std::string>(),
                      line.value("text", std::string()), line.value("time", std::string())});
  });
  return events;
}

}  // namespace braid
