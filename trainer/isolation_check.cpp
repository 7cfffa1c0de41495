#include "trainer/isolation_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/core/float_types.h"
#include "kernels/core/philox.h"
#include "kernels/lm_head_loss.h"
#include "trainer/train_step.h"

namespace braid {
namespace {

constexpr int64_t kMostTokens = 512, kLeastTokens = 16;

// Documents A, B, C of lengths that are no multiples of anything, and padding.
struct Row {
  int64_t begin_b, begin_c, end_c, tokens;
  explicit Row(int64_t T) : tokens(T) {
    end_c = T - std::max<int64_t>(1, T / 16);
    begin_b = end_c * 5 / 16 | 1;
    begin_c = (begin_b + end_c * 6 / 16) | 1;
  }
  bool is_changed(int64_t t) const { return begin_b <= t && t < begin_c; }
};

// All tokens of B are other ones in the two batches.
// Without `routed` the tokens of B are computed but reach no expert.
Batch batch_of(const Row& row, const RunConfig& config, Boundary boundary, bool routed, bool is_second) {
  const int64_t V = config.model.vocab_size;
  Batch batch;
  batch.num_rows = 1;
  batch.row_tokens = row.tokens;
  Segments& s = batch.segments;
  s.num_rows = 1;
  s.row_tokens = row.tokens;
  s.offsets = {0, row.begin_b, row.begin_c, row.end_c, row.tokens};
  if (boundary == Boundary::kTakenAway) s.offsets.erase(s.offsets.begin() + 2);
  for (int64_t t = 0; t < row.tokens; ++t) {
    const auto bits = philox(static_cast<uint64_t>(config.train.seed), 0x69736f6c, static_cast<uint64_t>(t));
    const int64_t token = bits[0] % V, other = 1 + bits[1] % std::max<int64_t>(V - 1, 1);
    batch.tokens.push_back(is_second && row.is_changed(t) ? (token + other) % V : token);
    s.valid.push_back(t < row.end_c && (routed || !row.is_changed(t)));
  }
  batch.targets.assign(row.tokens, -1);
  for (int64_t t = 0; t + 1 < row.end_c; ++t)
    if (!row.is_changed(t) && t + 1 != row.begin_b) batch.targets[t] = batch.tokens[t + 1];
  batch.complete();
  return batch;
}

std::vector<char> on_host(Context& ctx, const Tensor& tensor) {
  std::vector<char> bytes(tensor.bytes());
  copy(ctx, Tensor(bytes.data(), tensor.dtype(), tensor.shape()), tensor);
  return bytes;
}

struct Results {
  std::vector<char> hidden, mtp_hidden;  // (T, C)
  std::vector<double> losses;            // of every token with a target
  std::vector<int64_t> tokens_of_losses;
  std::map<std::string, std::vector<char>> gradients;
  DType dtype = DType::kF32;
  std::map<std::string, DType> gradient_dtypes;
  std::set<std::string> of_experts;  // names of gradients
};

Results compute(Context& ctx, TrainingState& state, const RunConfig& config, const Batch& batch) {
  Model& model = state.model;
  Results r;
  state.parameters.zero_gradients(ctx);
  state.balance.begin_step(ctx, tokens_per_layer(model, batch.counts));
  model.forward(ctx, batch);
  state.balance.count(ctx, model.routers());
  state.balance.prepare_backward(ctx, state.balance_gradients, model.routers());
  r.dtype = model.hidden().dtype();
  r.hidden = on_host(ctx, model.hidden());
  if (model.has_mtp()) r.mtp_hidden = on_host(ctx, model.mtp_hidden());

  Planner planner;
  Tensor sum, target;
  planner.add("loss of a token", sum, {1}, DType::kF64);
  planner.add("its target", target, {1}, DType::kI64);
  const Arena arena("losses of tokens", planner, ctx.device());
  for (int64_t t = 0; t < batch.row_tokens; ++t) {
    if (batch.targets[t] < 0) continue;
    int64_t id = batch.targets[t];
    double loss = 0;
    copy(ctx, target, Tensor::of(&id, {1}));
    lm_head_loss_forward(ctx, sum, model.hidden().rows(t, t + 1), model.weights().lm_head, target);
    copy(ctx, Tensor::of(&loss, {1}), sum);
    r.losses.push_back(loss);
    r.tokens_of_losses.push_back(t);
  }
  const LossSums sums = model.losses_and_backward(ctx, loss_scales(batch.counts, config.mtp), state.balance_gradients);
  r.losses.push_back(sums.lm);
  r.losses.push_back(sums.mtp);
  model.gradients().visit(config.model, [&](const std::string& name, Tensor& tensor, const Shape&, Owner owner, Init,
                                            Decay, const PackedRows& = {}) {
    if (owner == Owner::kExpertRank) r.of_experts.insert(name);
    r.gradients[name] = on_host(ctx, tensor);
    r.gradient_dtypes[name] = tensor.dtype();
  });
  return r;
}

// First element whose bits differ, zeros of either sign taken as one; -1 if none does.
int64_t first_difference(const char* a, const char* b, int64_t bytes, DType dtype) {
  const int64_t size = size_of(dtype);
  if (std::memcmp(a, b, bytes) == 0) return -1;
  const auto is_zero = [&](const char* x) {  // little endian: the sign is the last byte's highest bit
    for (int64_t i = 0; i + 1 < size; ++i)
      if (x[i] != 0) return false;
    return (x[size - 1] & 0x7f) == 0;
  };
  for (int64_t at = 0; at < bytes; at += size)
    if (std::memcmp(a + at, b + at, size) != 0 && !(is_zero(a + at) && is_zero(b + at))) return at / size;
  return -1;
}

// Do two sums of the same numbers in another order explain the difference?
bool is_rounding(const std::vector<char>& a, const std::vector<char>& b, DType dtype) {
  const double unit = dtype == DType::kF64 ? 0x1p-53 : dtype == DType::kBF16 ? 0x1p-9 : 0x1p-24;
  const auto tensor = [&](const std::vector<char>& bytes) {
    return Tensor(const_cast<char*>(bytes.data()), dtype, {static_cast<int64_t>(bytes.size()) / size_of(dtype)});
  };
  const Tensor of_a = tensor(a), of_b = tensor(b);
  double difference = 0, size = 0;
  for (int64_t i = 0; i < of_a.numel(); ++i) {
    const double x = number_at(of_a, i), y = number_at(of_b, i);
    difference += (x - y) * (x - y);
    size += x * x;
  }
  return std::sqrt(difference) <= 16 * unit * std::sqrt(size);  // a NaN is none
}

}  // namespace

IsolationReport check_isolation(Context& ctx, const ProcessMesh& mesh, RunConfig config, Boundary boundary) {
  check<ConfigError>(config.train.seq_length >= kLeastTokens, "train.seq_length is ", config.train.seq_length,
                     ", but three documents need rows of at least ", kLeastTokens, " tokens");
  config.train.seq_length = std::min(config.train.seq_length, kMostTokens);
  config.train.micro_batch_size = config.train.global_batch_size = 1;
  config.balance.loss_weight = config.balance.z_loss_weight = 0;
  config.log.metrics.clear();
  TrainingState state(config, mesh);
  state.allocate(ctx);
  state.initialize(ctx);
  const Row row(config.train.seq_length);
  const auto results_of = [&](bool routed, bool is_second) {
    return compute(ctx, state, config, batch_of(row, config, boundary, routed, is_second));
  };
  const Results a = results_of(true, false), b = results_of(true, true);

  IsolationReport report;
  report.row_tokens = row.tokens;
  report.changed_document_tokens = row.begin_c - row.begin_b;
  report.other_tokens = row.end_c - report.changed_document_tokens;
  const auto differs = [&](const std::string& what) {
    if (report.first_difference.empty()) report.first_difference = what;
    return 1;
  };
  const auto document_of = [&](int64_t t) { return t < row.begin_b ? "in front of" : "behind"; };
  const int64_t row_bytes = static_cast<int64_t>(a.hidden.size()) / row.tokens;
  const auto compare_states = [&](const char* what, const auto& x, const auto& y, int64_t& count, int64_t& differing) {
    for (int64_t t = 0; t < row.end_c && !x.empty(); ++t) {
      if (row.is_changed(t)) continue;
      ++count;
      const int64_t at = first_difference(&x[t * row_bytes], &y[t * row_bytes], row_bytes, a.dtype);
      if (at >= 0)
        differing += differs(
            concat(what, " of token ", t, ", ", document_of(t), " the changed document, differs in channel ", at));
    }
  };
  compare_states("the output", a.hidden, b.hidden, report.outputs, report.differing_outputs);
  compare_states("the MTP block's output", a.mtp_hidden, b.mtp_hidden, report.mtp_outputs,
                 report.differing_mtp_outputs);
  for (size_t i = 0; i < a.losses.size(); ++i) {
    ++report.token_losses;
    if (std::memcmp(&a.losses[i], &b.losses[i], sizeof(double)) == 0) continue;
    const bool is_token = i < a.tokens_of_losses.size();
    report.differing_losses +=
        differs(concat("the loss of ", is_token ? concat("token ", a.tokens_of_losses[i]) : "all of them", " was ",
                       a.losses[i], " and is ", b.losses[i]));
  }
  for (const auto& [name, gradient] : a.gradients) {
    ++report.gradients;
    const int64_t at = first_difference(gradient.data(), b.gradients.at(name).data(),
                                        static_cast<int64_t>(gradient.size()), a.gradient_dtypes.at(name));
    if (at < 0) continue;
    if (a.of_experts.contains(name) && is_rounding(gradient, b.gradients.at(name), a.gradient_dtypes.at(name)))
      ++report.reordered_gradients;
    else report.differing_gradients += differs(concat("the gradient of ", name, " differs in element ", at));
  }
  if (report.reordered_gradients == 0) return report;
  const Results c = results_of(false, false), d = results_of(false, true);
  for (const auto& [name, gradient] : c.gradients) {
    const int64_t at = first_difference(gradient.data(), d.gradients.at(name).data(),
                                        static_cast<int64_t>(gradient.size()), c.gradient_dtypes.at(name));
    if (at >= 0)
      report.differing_gradients += differs(concat("the gradient of ", name, " differs in element ", at,
                                                   " though the changed document reaches no expert"));
  }
  return report;
}

}  // namespace braid
