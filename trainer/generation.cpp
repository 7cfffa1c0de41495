#include "trainer/generation.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/core/philox.h"
#include "kernels/matmul.h"

namespace braid {
namespace {

// One row with the last tokens of the text; what is left of the row is padding, a document of its own.
Batch batch_of_text(const std::vector<uint32_t>& text, int64_t row_tokens) {
  const int64_t length = std::min<int64_t>(text.size(), row_tokens);
  Batch batch;
  batch.num_rows = 1;
  batch.row_tokens = row_tokens;
  batch.tokens.assign(text.end() - length, text.end());
  batch.tokens.resize(row_tokens, 0);
  batch.targets.assign(row_tokens, -1);
  batch.segments.num_rows = 1;
  batch.segments.row_tokens = row_tokens;
  batch.segments.offsets = {0, length};
  if (length < row_tokens) batch.segments.offsets.push_back(row_tokens);
  batch.segments.valid.assign(row_tokens, 0);
  std::fill_n(batch.segments.valid.begin(), length, 1);
  batch.complete();
  return batch;
}

double logit_at(const Tensor& logits, int64_t v) {
  return logits.dtype() == DType::kF64 ? logits.data<double>()[v] : logits.data<float>()[v];
}

int64_t sample(const Tensor& logits, const SamplingConfig& sampling, int64_t position) {
  const int64_t V = logits.dim(1);
  std::vector<int64_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return logit_at(logits, a) > logit_at(logits, b); });
  if (sampling.temperature <= 0) return order[0];
  if (sampling.top_k > 0) order.resize(std::min(V, sampling.top_k));
  std::vector<double> weight;
  for (int64_t v : order)
    weight.push_back(std::exp((logit_at(logits, v) - logit_at(logits, order[0])) / sampling.temperature));
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double point = total * (philox(sampling.seed, 0, static_cast<uint64_t>(position))[0] + 0.5) * 0x1p-32;
  for (size_t i = 0; i < weight.size(); ++i)
    if ((point -= weight[i]) < 0) return order[i];
  return order.back();
}

}  // namespace

std::vector<uint32_t> generate(Context& ctx, Model& model, std::vector<uint32_t> prompt, const SamplingConfig& sampling,
                               int64_t end_of_document) {
  check<ConfigError>(!prompt.empty(), "the prompt is empty");
  const int64_t row_tokens = model.num_tokens(), C = model.config().hidden_size, V = model.config().vocab_size;
  for (uint32_t token : prompt)
    check<ConfigError>(token < V, "the prompt holds token ", token, ", the model's vocabulary has ", V);
  std::vector<uint32_t> text = std::move(prompt), added;
  std::vector<double> host_memory(static_cast<size_t>(V));  // logits of either dtype
  for (int64_t i = 0; i < sampling.num_tokens; ++i) {
    const Batch batch = batch_of_text(text, row_tokens);
    model.forward(ctx, batch);

    Scratch scratch(ctx);
    Tensor logits = scratch.tensor({1, V}, wide_dtype(model.hidden().dtype()));
    const int64_t last = std::min<int64_t>(text.size(), row_tokens) - 1;
    linear_forward(ctx, logits, model.hidden().rows(last, last + 1).view({1, C}), model.weights().lm_head);
    Tensor host_logits(host_memory.data(), logits.dtype(), logits.shape());
    copy(ctx, host_logits, logits);
    const int64_t token = sample(host_logits, sampling, i);
    if (token == end_of_document) break;
    text.push_back(static_cast<uint32_t>(token));
    added.push_back(static_cast<uint32_t>(token));
  }
  return added;
}

}  // namespace braid
