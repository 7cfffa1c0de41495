#pragma once

#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/attention_inputs.h"
#include "kernels/cases/trial.h"
#include "kernels/core/implementation.h"
#include "kernels/gdn_inputs.h"
#include "kernels/router.h"

namespace braid::cases {

// One set of sizes and inputs of an operator.
struct Variant {
  std::string label;  // "300 x 96"; what decides which kernels run
  std::function<void(Trial&)> declare;
};
using Variants = std::vector<Variant>;

// What the operators of a run depend on.
struct Sizes {
  DType activation = DType::kF32;
  int64_t rows = 1, row_tokens = 0;                               // B, T
  int64_t hidden = 0, vocabulary = 0;                             // C, V
  int64_t experts = 0, local_experts = 0, experts_per_token = 0;  // E, El, K
  int64_t expert_width = 0, shared_width = 0;                     // F
  GateNorm gate_norm = GateNorm::kTopK;
  double eps = 1e-6;
  std::optional<GdnDims> gdn;              // where a layer is Gated DeltaNet
  std::optional<AttentionDims> attention;  // where a layer, or the MTP block, is attention
  bool mtp = false;
  bool muon = false;         // the optimizer's rule for matrices
  bool shared_rows = false;  // by ranks
  // Only to time and to repeat:
  std::vector<int64_t> documents;         // of one row, instead of whole rows and of mixed_documents()
  int64_t shard_elements = 1 << 27;       // of the optimizer
  int64_t product_size = 8192;            // M = N = K
  int64_t copy_bytes = int64_t{4} << 30;  // of one long copy

  int64_t tokens() const { return rows * row_tokens; }  // N
};

// An operator of the catalogue: what is asked of it, and of its gradient, on every device. kernels/cases/ has a file
// for each header in kernels/; adding an operator means a header, an implementation per device, and its case.
//   - On the CPU: gradients against central differences in fp64, fp32 against fp64, the same bits for every number of
//     threads.   (tests/kernels/cases_test.cpp)
//   - On a GPU: against the CPU in fp32 and bf16; a hundred runs, one hash.   (tests/kernels/cuda/cases_test.cpp)
//   - The self-check at the start of a run, and `braid bench`.   (trainer/device/, trainer/bench/)
struct OperatorCase {
  const char* name;  // of the header in kernels/, and in `allow_slow`
  // Every hard case that somebody thought of, in sizes of its own.
  Variants (*hard)();
  // In a run's widths, but with few tokens, few experts and a small vocabulary: before a run is trusted to a device.
  // Empty where the run does not use the operator.
  Variants (*checked)(const Sizes&);
  // In a run's sizes, to be timed; to be repeated, in smaller ones.
  Variants (*timed)(const Sizes&);
  // Which code serves a run with these sizes; null for what no run need choose.
  Implementation (*implementation)(Context&, const Sizes&) = nullptr;
};
const std::vector<OperatorCase>& operator_cases();  // in the order of a step
const OperatorCase& operator_case(const std::string& name);

// Those with an implementation to choose, by the names that `allow_slow` takes.
std::vector<std::string> operator_names();
// Whether a run of these sizes has such an operator at all.
inline bool is_used(const OperatorCase& c, const Sizes& sizes) { return !c.checked(sizes).empty(); }
// What the steps of a case's variants are called: "rms_norm_forward", each once.
std::vector<std::string> step_names(const Variants& variants);

// ---- What several cases need

constexpr int64_t kCheckedTokens = 204;  // of both
Segments packed_documents();             // of one token, and others on both sides of a chunk and of a tile
Segments rows_with_invalid_tokens();     // three rows, the last without valid tokens

Segments whole_rows(const Sizes& sizes);
Segments mixed_documents(const Sizes& sizes);                        // about 1000 tokens in the mean, none across rows
Segments equal_documents(int64_t num_tokens, int64_t tokens_each);   // in one row
Segments uneven_documents(int64_t num_tokens);                       // in one row; of 32,768: 100 to 20,000
std::string rows_name(const Sizes& sizes);                           // "8 x 4096"
Segments with_invalid_tokens(int64_t num_rows, int64_t row_tokens);  // every seventh, and the whole second row

// Rows as parts of longer ones: tokens of their first documents that come before them, and of their last behind them.
Segments going_on(Segments rows, std::vector<int64_t> before, std::vector<int64_t> behind);
// As many rows that are halves of documents.
Segments halves_of_documents(int64_t num_rows, int64_t row_tokens);

// Edits: what a random tensor becomes.
void unit_rows(Tensor x);                               // of length 1
std::function<void(Tensor)> nan_from_row(int64_t row);  // rows that nobody may read
std::function<void(Tensor)> with_values(std::vector<double> values);

// Sums and products that the tensors of a step add up to.
template <class... Tensors>
double bytes_of(const Tensors&... tensors) {
  return (0.0 + ... + double(tensors.bytes()));
}

// Of operators that have one implementation for every size.
inline Implementation only_implementation(Context& ctx, const Sizes&) {
  return {ctx.on_cuda() ? "one kernel for every size" : "CPU", ""};
}
// Of those that pass over rows as wide as the model.
inline Implementation hidden_row_implementation(Context& ctx, const Sizes& s) {
  return row_pass_implementation(ctx, s.activation, s.hidden);
}
// A tensor that has everything but memory.
inline Tensor shaped(const Context& ctx, DType dtype, Shape shape) {
  return Tensor(nullptr, dtype, shape, ctx.device());
}

}  // namespace braid::cases
