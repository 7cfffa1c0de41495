#include "trainer/generation.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/core/philox.h"
#include "kernels/matmul.h"

namespace braid {
namespace {

Batch one_document(std::span<const uint32_t> tokens) {
  const auto length = static_cast<int64_t>(tokens.size());
  Batch batch;
  batch.num_rows = 1;
  batch.row_tokens = length;
  batch.tokens.assign(tokens.begin(), tokens.end());
  batch.targets.assign(tokens.size(), -1);
  batch.segments = Segments::whole_rows(1, length);
  batch.complete();
  return batch;
}

// One token's products wait for memory, which some 16 threads use up; what more of them add is waiting for each other,
// which a busy core makes as long as another program's turn on it.
class ThreadsForOneToken {
 public:
  ThreadsForOneToken() : threads_(omp_get_max_threads()) { omp_set_num_threads(std::min(threads_, 16)); }
  ~ThreadsForOneToken() { omp_set_num_threads(threads_); }
  ThreadsForOneToken(const ThreadsForOneToken&) = delete;
  ThreadsForOneToken& operator=(const ThreadsForOneToken&) = delete;

 private:
  int threads_;
};

double logit_at(const Tensor& logits, int64_t v) {
  return logits.dtype() == DType::kF64 ? logits.data<double>()[v] : logits.data<float>()[v];
}

int64_t sample(const Tensor& logits, const SamplingConfig& sampling, int64_t position) {
  const int64_t V = sampling.num_ids > 0 ? std::min(sampling.num_ids, logits.numel()) : logits.numel();
  std::vector<int64_t> order(V);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t v = 0; v < V; ++v)
    check<NumericsError>(std::isfinite(logit_at(logits, v)), "the model's logit of token ", v, " is ",
                         logit_at(logits, v));
  // The most probable first, of equal ones the lowest id; only those that are asked for are sorted.
  const auto is_before = [&](int64_t a, int64_t b) {
    const double left = logit_at(logits, a), right = logit_at(logits, b);
    return left > right || (left == right && a < b);
  };
  const int64_t k = sampling.temperature <= 0 ? 1 : sampling.top_k > 0 ? std::min(V, sampling.top_k) : V;
  if (k < V) std::partial_sort(order.begin(), order.begin() + k, order.end(), is_before);
  else std::sort(order.begin(), order.end(), is_before);
  if (sampling.temperature <= 0) return order[0];
  order.resize(k);
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

TextReader::TextReader(Context& ctx, Model& model, int64_t max_tokens)
    : ctx_(ctx), model_(model), logits_memory_(static_cast<size_t>(model.config().vocab_size)) {
  Planner plan;
  model.plan_cache(plan, cache_, max_tokens);
  memory_ = Arena("the text so far", plan, ctx.device());
  logits_ = Tensor(logits_memory_.data(), wide_dtype(model.hidden().dtype()), {model.config().vocab_size});
}

const Tensor& TextReader::read(std::span<const uint32_t> tokens) {
  const ModelConfig& config = model_.config();
  const int64_t N = static_cast<int64_t>(tokens.size()), V = config.vocab_size;
  auto last_logits = [&](Model& model) {
    model.forward(ctx_, one_document(tokens), cache_);
    Scratch scratch(ctx_);
    Tensor logits = scratch.tensor({1, V}, logits_.dtype());
    linear_forward(ctx_, logits, model.hidden().rows(N - 1, N), model_.weights().lm_head);
    copy(ctx_, logits_, logits);
  };
  if (N == 1) {
    const ThreadsForOneToken fewer;
    last_logits(model_);
    return logits_;
  }
  // A longer piece goes through a model of its shape, on the same weights.
  const std::unique_ptr<Communicator> alone = make_local_communicator();
  Model model(config, MtpConfig{.depth = 0}, {1, N}, model_.hidden().dtype(), *alone, 0, Recompute::kLayer);
  Planner plan;
  model.plan_activations(plan);
  const Arena activations("activations", plan, ctx_.device());
  model.weights() = model_.weights();
  last_logits(model);
  return logits_;
}

std::vector<uint32_t> generate(Context& ctx, Model& model, const std::vector<uint32_t>& prompt,
                               const SamplingConfig& sampling, int64_t end_of_document) {
  const int64_t V = model.config().vocab_size, longest = model.config().max_position_embeddings;
  const int64_t num_tokens = std::ssize(prompt) + sampling.num_tokens;
  check<ConfigError>(!prompt.empty(), "the prompt is empty");
  check<ConfigError>(num_tokens <= longest, "the prompt's ", prompt.size(), " tokens and ", sampling.num_tokens,
                     " new ones are more than the model's max_position_embeddings of ", longest);
  for (uint32_t token : prompt)
    check<ConfigError>(token < V, "the prompt holds token ", token, ", the model's vocabulary has ", V);

  TextReader reader(ctx, model, num_tokens);
  std::vector<uint32_t> added;
  for (int64_t i = 0; i < sampling.num_tokens; ++i) {
    const Tensor& logits = i == 0 ? reader.read(prompt) : reader.read({&added.back(), 1});
    const int64_t token = sample(logits, sampling, i);
    if (token == end_of_document) break;
    added.push_back(static_cast<uint32_t>(token));
  }
  return added;
}

}  // namespace braid
