#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/cases/operator_case.h"
#include "kernels/core/context.h"
#include "kernels/core/device_info.h"
#include "kernels/core/enum_names.h"
#include "parallel/communicator.h"

namespace braid {

// What is timed: the released model's operators on a GPU; on the CPU those of a model that a CPU could train. Sequences
// are gcd(num_tokens, 4096) tokens long.   num_tokens  N, a multiple of 64
cases::Sizes bench_sizes(Device device, int64_t num_tokens);
constexpr int64_t default_bench_tokens(Device device) { return device == Device::kCuda ? 8 * 4096 : 2048; }

struct OperatorBenchOptions {
  std::vector<std::string> ops;  // the beginnings of operators' names, or names of headers in kernels/; none: all
  cases::Sizes sizes;
  std::vector<int64_t> exchange_mib = {16, 64, 160, 640};  // what collectives move
  int max_turns = 25;                                      // that a time is the median of
};

// What this machine can do at best, as measured in the same run.
struct Ceilings {
  double bytes_per_ms = 0;       // read and written by a large copy
  double flop_per_ms = 0;        // of a large product, bf16 on a GPU
  double link_bytes_per_ms = 0;  // sent by every rank to the next one while it receives as much; 0: a single rank
};

// The least that an operator or a collective must do.
struct Work {
  double bytes = 0;       // read and written, every input and output once
  double flop = 0;        // floating-point operations of products
  double link_bytes = 0;  // sent to other ranks
};

enum class Bound { kMemory, kCompute, kLink };
template <>
struct EnumNames<Bound> {
  static constexpr std::array kNames = {"memory", "compute", "link"};
};

struct OperatorTiming {
  std::string op, shape;
  double ms = 0;  // median; of the slowest rank
  Work work;
  Bound bound = Bound::kMemory;  // what the ceilings allow least of
  double share = 0;              // the time at that ceiling, as a part of ms

  double bytes_moved() const { return bound == Bound::kLink ? work.link_bytes : work.bytes; }
};
// Fills in `bound` and `share`.
OperatorTiming judged(OperatorTiming timing, const Ceilings& ceilings);

// Errors: ConfigError, listing the names, if `ops` holds one that no operator has.
void check_operator_names(const std::vector<std::string>& ops);
// Errors: ConfigError if a collective was asked for and there is a single rank.
void check_operators_run(const std::vector<std::string>& ops, int num_ranks);

// What the chosen names stand for: "rms_norm_forward", and the collectives.
std::vector<std::string> timed_operators(const std::vector<std::string>& ops, int num_ranks);

Ceilings measure_ceilings(Context& ctx, Communicator& world, const OperatorBenchOptions& options);

// Times the chosen operators of the catalogue, forward and backward, and on several ranks the collectives, on all ranks
// at once; `report` gets each as soon as it is known. Memory is freed from one shape to the next.
// Errors: OutOfMemoryError.
std::vector<OperatorTiming> bench_operators(Context& ctx, Communicator& world, const OperatorBenchOptions& options,
                                            const Ceilings& ceilings,
                                            const std::function<void(const OperatorTiming&)>& report);

// Where, when and on what the operators were timed.
struct OperatorBenchHead {
  DeviceInfo device;
  std::string date;  // "2026-11-23", UTC
  int num_ranks = 1;
  int64_t num_tokens = 0;
  Ceilings ceilings;
};
std::string today();

// Lines for people: the head and the titles of the columns; a row. Or one JSON object.
std::string format_operator_head(const OperatorBenchHead& head);
std::string format_operator_timing(const OperatorTiming& timing);
std::string operator_bench_json(const OperatorBenchHead& head, const std::vector<OperatorTiming>& timings);

}  // namespace braid
