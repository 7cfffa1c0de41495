#include "trainer/metrics/run_search.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>

#include "kernels/core/error.h"

namespace braid {

namespace fs = std::filesystem;

std::string runs_inside(const std::string& folder) {
  constexpr int kMaxDepth = 1, kMaxEntries = 20000;  // of a study; whatever else was named is not searched to its end
  std::string first;
  int64_t count = 0, entries = 0;
  std::error_code error, ignored;
  for (fs::recursive_directory_iterator it(folder, fs::directory_options::skip_permission_denied, error), end;
       !error && it != end && entries < kMaxEntries; it.increment(error), ++entries) {
    const bool is_run = fs::exists(it->path() / "metrics.jsonl", ignored);
    if (is_run) first = ++count == 1 ? it->path().string() : std::min(first, it->path().string());
    if (is_run || it.depth() == kMaxDepth) it.disable_recursion_pending();
  }
  if (count == 0) return "";
  const fs::path report = fs::path(folder) / "report.html";
  return concat("; it holds ", count == 1 ? "the run " : concat(count, " runs, one is "), first,
                fs::exists(report, ignored) ? ", and " + report.string() + " compares them" : "");
}

std::string metrics_of_run(const std::string& folder) {
  const fs::path path = fs::path(folder) / "metrics.jsonl";
  std::error_code error;
  if (fs::exists(path, error) || error) return path.string();
  const std::string inside = runs_inside(folder);
  check<IoError>(!inside.empty(), path.string(), ": is missing; a run folder holds what braid train wrote");
  throw IoError(folder + ": is no run, there is no metrics.jsonl" + inside);
}

}  // namespace braid
