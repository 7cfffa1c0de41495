#pragma once

#include <string>

namespace braid {

// What to say of a folder that was taken for a run and is none: which runs it holds, as that of a study does, and the
// report on them. Begins with "; ", and is empty where there are none. Looks two folders deep.
std::string runs_inside(const std::string& folder);

// The metrics.jsonl of a run.   Errors: IoError if it has none, with the runs inside.
std::string metrics_of_run(const std::string& folder);

}  // namespace braid
