#include "parallel/failpoint.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/stream.h"

namespace braid {
namespace {

constexpr const char* kSites[] = {"init",
                                  "data",
                                  "step.begin",
                                  "loss",
                                  "optim",
                                  "scratch",
                                  "eval",
                                  "save",
                                  "load",
                                  "end",
                                  "comm.all_reduce",
                                  "comm.reduce_scatter",
                                  "comm.all_gather",
                                  "comm.all_to_all_rows",
                                  "comm.broadcast",
                                  "comm.barrier",
                                  "comm.split",
                                  "nccl.all_reduce"};
constexpr const char* kDeeds[] = {"kill", "stop", "segv", "exit", "hang",  "delay",
                                  "oom",  "nan",  "inf",  "flip", "errno", "abort"};

struct Plan {
  std::string site, deed;
  double value = 0;
  int64_t rank = -1, nth = 1;
  bool every = false;
  int64_t passed = 0;
};

template <size_t kCount>
bool is_one_of(const std::string& word, const char* const (&words)[kCount]) {
  for (const char* known : words)
    if (word == known) return true;
  return false;
}

double number_in(const std::string& text, const std::string& part) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  check<ConfigError>(!text.empty() && *end == '\0', "BRAID_FAULT: ", part, ": ", text, " is no number");
  return value;
}

Plan plan_of(const std::string& text) {
  Plan plan;
  Loud<std::istringstream> parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const std::string name = part.substr(0, part.find('=')),
                      value = part.substr(std::min(part.size(), name.size() + 1));
    if (name == "site") plan.site = value;
    else if (name == "rank") plan.rank = static_cast<int64_t>(number_in(value, part));
    else if (name == "nth") plan.nth = static_cast<int64_t>(number_in(value, part));
    else if (name == "every") plan.every = value == "yes";
    else if (name == "do") {
      plan.deed = value.substr(0, value.find('='));
      if (value.size() > plan.deed.size()) plan.value = number_in(value.substr(plan.deed.size() + 1), part);
    } else {
      throw ConfigError(concat("BRAID_FAULT: ", part, ": unknown; it takes site, rank, nth, every and do"));
    }
  }
  check<ConfigError>(is_one_of(plan.site, kSites), "BRAID_FAULT: there is no site '", plan.site, "'");
  check<ConfigError>(is_one_of(plan.deed, kDeeds), "BRAID_FAULT: do=", plan.deed, " is unknown");
  return plan;
}

std::vector<Plan> read_plans() {
  std::vector<Plan> plans;
  const char* text = std::getenv("BRAID_FAULT");
  if (!text || !*text) return plans;
  int64_t rank = 0;
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* value = std::getenv(name)) {
      rank = std::atoi(value);
      break;
    }
  Loud<std::istringstream> all(text);
  for (std::string one; std::getline(all, one, ';');) {
    Plan plan = plan_of(one);
    if (plan.rank < 0 || plan.rank == rank) plans.push_back(std::move(plan));
  }
  return plans;
}

Fault happen(const Plan& plan) {
  const std::string& deed = plan.deed;
  if (deed == "kill") raise(SIGKILL);
  if (deed == "stop") raise(SIGSTOP);
  if (deed == "segv") {
    std::signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
  }
  if (deed == "exit") std::_Exit(static_cast<int>(plan.value));
  if (deed == "hang")
    for (;;) pause();
  if (deed == "delay") usleep(static_cast<useconds_t>(plan.value * 1e6));
  if (deed == "oom") throw std::bad_alloc();
  if (deed == "nan") return {FaultKind::kNan, 0};
  if (deed == "inf") return {FaultKind::kInf, 0};
  if (deed == "flip") return {FaultKind::kFlip, static_cast<int64_t>(plan.value)};
  if (deed == "abort") return {FaultKind::kAbort, 0};
  if (deed == "errno") return {FaultKind::kErrno, static_cast<int64_t>(plan.value)};
  return {};
}

}  // namespace

Fault fault_point(const char* site) {
  static std::vector<Plan> plans = read_plans();
  static const bool off = plans.empty();
  if (off) [[likely]]
    return {};
  Fault fault;
  for (Plan& plan : plans) {
    if (plan.site != site) continue;
    plan.passed += 1;
    if (plan.every ? plan.passed >= plan.nth : plan.passed == plan.nth) fault = happen(plan);
  }
  return fault;
}

double with_fault(const char* site, double value) {
  const Fault fault = fault_point(site);
  switch (fault.kind) {
    case FaultKind::kNan: return std::numeric_limits<double>::quiet_NaN();
    case FaultKind::kInf: return std::numeric_limits<double>::infinity();
    case FaultKind::kFlip:
      return std::bit_cast<double>(std::bit_cast<uint64_t>(value) ^ (uint64_t{1} << (fault.value & 63)));
    default: return value;
  }
}

}  // namespace braid
