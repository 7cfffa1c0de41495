#include "kernels/lm_head_loss.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/matmul.h"

namespace braid::cpu {
namespace {

// The logits of a chunk fit into this much scratch unless that makes fewer tokens than a product needs to be fast, and
// a chunk stops growing where it would leave the caches for nothing.
constexpr int64_t kLogitsBytes = int64_t{32} << 20, kMinTokens = 64, kMaxTokens = 1024;

enum class Gradient { kNo, kYes };

// The sum of exp(logit - highest), which the logits become if their gradient is wanted.
template <Gradient kGradient, class T>
T exp_sum(T* logits, int64_t n, T highest) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t v = 0; v < n; ++v) {
    const T e = fast_exp(logits[v] - highest);
    if constexpr (kGradient == Gradient::kYes) logits[v] = e;
    sum += e;
  }
  return sum;
}

// Loss of one token. Its logits become the gradient of scale * loss, if wanted.
template <Gradient kGradient, class T>
double token_loss(T* logits, int64_t V, int64_t target, T scale) {
  T highest = logits[0];
#pragma omp simd reduction(max : highest)
  for (int64_t v = 0; v < V; ++v) highest = std::max(highest, logits[v]);
  const double target_logit = logits[target];
  const double sum = sum_in_blocks(
      V, [=](int64_t begin, int64_t end) { return exp_sum<kGradient>(logits + begin, end - begin, highest); });
  if constexpr (kGradient == Gradient::kYes) {
    const T factor = static_cast<T>(scale / sum);
#pragma omp simd
    for (int64_t v = 0; v < V; ++v) logits[v] *= factor;
    logits[target] -= scale;
  }
  return highest - target_logit + std::log(sum);
}

struct Gradients {
  Tensor hidden, weight;
  double scale;
};

template <Gradient kGradient>
void sweep(Context& ctx, Tensor loss_sums, Gradients d, const Tensor& hidden, const Tensor& weight,
           const Tensor& targets) {
  const int64_t N = hidden.dim(0), V = weight.dim(0);
  const int64_t fitting_tokens = kLogitsBytes / (V * size_of(hidden.dtype()));
  const int64_t chunk_tokens = std::min(N, std::clamp(fitting_tokens, kMinTokens, kMaxTokens));
  const int64_t row_tokens = N / loss_sums.dim(0);
  double* sums = loss_sums.data<double>();
  if (!ctx.counts_only()) std::fill_n(sums, loss_sums.dim(0), 0.0);
  dispatch_float("hidden", hidden, [&]<class T> {
    Scratch scratch(ctx);
    Tensor logits = scratch.tensor({chunk_tokens, V}, hidden.dtype());
    double* losses = scratch.array<double>(chunk_tokens);
    for (int64_t begin = 0; begin < N; begin += chunk_tokens) {
      const int64_t end = std::min(N, begin + chunk_tokens);
      const int64_t* target = targets.data<int64_t>() + begin;
      const Tensor chunk = hidden.rows(begin, end);
      Tensor chunk_logits = logits.rows(0, end - begin);
      linear_forward(ctx, chunk_logits, chunk, weight);
      T* logits_data = chunk_logits.data<T>();
      const int64_t num_losses = ctx.counts_only() ? 0 : end - begin;
#pragma omp parallel for schedule(static)
      for (int64_t n = 0; n < num_losses; ++n) {
        T* token_logits = logits_data + n * V;
        assert(-1 <= target[n] && target[n] < V);
        if (target[n] >= 0) {
          losses[n] = token_loss<kGradient>(token_logits, V, target[n], static_cast<T>(d.scale));
        } else {
          losses[n] = 0;
          if constexpr (kGradient == Gradient::kYes) std::fill_n(token_logits, V, T(0));
        }
      }
      for (int64_t n = 0; n < num_losses; ++n) sums[(begin + n) / row_tokens] += losses[n];
      if constexpr (kGradient == Gradient::kYes) {
        linear_backward_input(ctx, d.hidden.rows(begin, end), chunk_logits, weight);
        linear_backward_weight(ctx, d.weight, chunk_logits, chunk);
      }
    }
  });
}

}  // namespace

void lm_head_loss_forward(Context& ctx, Tensor loss_sums, const Tensor& hidden, const Tensor& weight,
                          const Tensor& targets) {
  sweep<Gradient::kNo>(ctx, loss_sums, {}, hidden, weight, targets);
}

void lm_head_loss_forward_backward(Context& ctx, Tensor loss_sums, Tensor d_hidden, Tensor d_weight,
                                   const Tensor& hidden, const Tensor& weight, const Tensor& targets, double scale) {
  sweep<Gradient::kYes>(ctx, loss_sums, {d_hidden, d_weight, scale}, hidden, weight, targets);
}

}  // namespace braid::cpu
