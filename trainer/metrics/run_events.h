#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// What happened to a run beside its steps. `event` is one of started, resumed, changed, stopped, finished, or what
// others add; `text` is one sentence for people.
struct RunEvent {
  int64_t step = 0;  // updates done
  std::string event, text;
  std::string time;  // UTC, 2026-01-31T23:59:59Z; append_run_event sets it
};

// <run_dir>/events.jsonl: {"step": 20, "event": "resumed", "time": "…", "text": "…"}. It is never cut: a resume from an
// earlier step does not undo that the later ones were there. Rank 0 only. False if the line could not be written.
bool append_run_event(const std::string& run_dir, const RunEvent& event);

// All of them, oldest first; none if there is no such file. A torn last line is skipped.   Errors: DataError.
std::vector<RunEvent> read_run_events(const std::string& run_dir);

}  // namespace braid
