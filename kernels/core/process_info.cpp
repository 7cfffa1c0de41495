#include "kernels/core/process_info.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "kernels/core/file_text.h"
#include "kernels/core/sha256.h"
#include "kernels/core/stream.h"

namespace braid {

std::string host_name() {
  char name[256] = "unknown host";
  gethostname(name, sizeof name - 1);
  return name;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

int64_t now_ns() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

std::string program_digest() {
  Loud<std::ifstream> in("/proc/self/exe", std::ios::binary);
  if (!in) return "";
  Sha256 digest;
  std::vector<char> block(1 << 20);
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0)
    digest.update(block.data(), static_cast<size_t>(in.gcount()));
  return digest.hex();
}

int allowed_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? std::max(1, CPU_COUNT(&allowed)) : 1;
}

bool has_same_cores(int pid) {
  cpu_set_t mine, its;
  CPU_ZERO(&mine);
  CPU_ZERO(&its);
  return sched_getaffinity(0, sizeof mine, &mine) == 0 && sched_getaffinity(pid, sizeof its, &its) == 0 &&
         CPU_EQUAL(&mine, &its);
}

int quota_cores(const std::string& root) {
  double cores = INT_MAX;
  const auto limit = [&](double quota, double period) {
    if (quota > 0 && period > 0) cores = std::min(cores, quota / period);
  };
  // A line is "number:controllers:/group"; version 2 has no controllers. A group lies inside its parents, whose quotas
  // count as well; in a container the path may be that of the host, and what is mounted is its own.
  Loud<std::istringstream> groups(file_text(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool is_second = controllers.empty();
    if (!is_second && (',' + controllers + ',').find(",cpu,") == line.npos) continue;
    const std::string mount = root + (is_second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    for (std::filesystem::path group = line.substr(second + 1);; group = group.parent_path()) {
      const std::string folder = mount + group.string() + "/";
      double quota = 0, period = 0;
      if (is_second) {
        Loud<std::istringstream>(file_text(folder + "cpu.max")) >> quota >> period;  // "max 100000" reads as 0
      } else {
        Loud<std::istringstream>(file_text(folder + "cpu.cfs_quota_us")) >> quota;  // -1 for none
        Loud<std::istringstream>(file_text(folder + "cpu.cfs_period_us")) >> period;
      }
      limit(quota, period);
      if (!group.has_relative_path()) break;
    }
  }
  return std::max(1, static_cast<int>(std::ceil(std::min<double>(cores, INT_MAX))));
}

int usable_cores() { return std::min(allowed_cores(), quota_cores()); }

}  // namespace braid
