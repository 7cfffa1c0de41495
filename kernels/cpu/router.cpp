#include "kernels/router.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"
#include "kernels/cpu/vector_math.h"

namespace braid::cpu {
namespace {

constexpr int64_t kExpertBlock = 64;
constexpr int64_t kTileTokens = 64;

// prob = softmax(logits); returns the log-sum-exp.
template <class T>
T softmax(T* prob, const T* logits, int64_t E) {
  T highest = logits[0];
#pragma omp simd reduction(max : highest)
  for (int64_t e = 0; e < E; ++e) highest = std::max(highest, logits[e]);
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < E; ++e) {
    prob[e] = fast_exp(logits[e] - highest);
    sum += prob[e];
  }
  const T scale = 1 / sum;
#pragma omp simd
  for (int64_t e = 0; e < E; ++e) prob[e] *= scale;
  return highest + std::log(sum);
}

// The K largest of prob, falling, ties to the lower id: every expert passes those of a sorted list that it strictly
// exceeds. The first K always enter, so the ids are valid and distinct even where prob is NaN.
template <class T>
void choose(int32_t* id, const T* prob, int64_t E, int64_t K) {
  T lowest = 0;
  for (int64_t e = 0; e < E; ++e) {
    if (e >= K && !(prob[e] > lowest)) continue;
    int64_t place = std::min(e, K - 1);
    for (; place > 0 && prob[e] > prob[id[place - 1]]; --place) id[place] = id[place - 1];
    id[place] = static_cast<int32_t>(e);
    lowest = prob[id[std::min(e, K - 1)]];
  }
}

template <class T>
void route_token(int32_t* id, T* gate, const T* prob, int64_t E, int64_t K, bool valid, GateNorm norm) {
  if (!valid) {
    std::fill_n(id, K, -1);
    std::fill_n(gate, K, T(0));
    return;
  }
  choose(id, prob, E, K);
  T sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += prob[id[k]];
  std::sort(id, id + K);
  for (int64_t k = 0; k < K; ++k) gate[k] = norm == GateNorm::kTopK ? prob[id[k]] / sum : prob[id[k]];
}

// The sums over the valid tokens of each row of the batch, every one in token order.
template <class T>
void sum_rows(RouterOutputs& out, const Segments& segments) {
  const int64_t B = segments.num_rows, T_row = segments.row_tokens;
  const int64_t E = out.prob.dim(1), K = out.expert_id.dim(1);
  const uint8_t* valid = segments.valid.data();
  const int32_t* id = out.expert_id.data<int32_t>();
  const T *prob = out.prob.data<T>(), *lse = out.lse.data<T>();
  int64_t* counts = out.counts.data<int64_t>();
  double *prob_sum = out.prob_sum.data<double>(), *z_sum = out.z_sum.data<double>();
#pragma omp parallel for schedule(static) if (B > 1)
  for (int64_t b = 0; b < B; ++b) {
    std::fill_n(counts + b * E, E, 0);
    z_sum[b] = 0;
    for (int64_t n = b * T_row; n < (b + 1) * T_row; ++n) {
      if (!valid[n]) continue;
      for (int64_t k = 0; k < K; ++k) ++counts[b * E + id[n * K + k]];
      z_sum[b] += static_cast<double>(lse[n]) * lse[n];
    }
  }
#pragma omp parallel for collapse(2) schedule(static) if (out.prob.dim(0) > 1)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t first = 0; first < E; first += kExpertBlock) {
      const int64_t width = std::min(kExpertBlock, E - first);
      double sum[kExpertBlock] = {};
      for (int64_t n = b * T_row; n < (b + 1) * T_row; ++n) {
        if (!valid[n]) continue;
#pragma omp simd
        for (int64_t e = 0; e < width; ++e) sum[e] += prob[n * E + first + e];
      }
      std::copy_n(sum, width, prob_sum + b * E + first);
    }
  }
}

template <class T>
double entropy(const T* prob, const T* logits, T lse, int64_t E) {
  T sum = 0;  // of what is at most ln(E): fp32 loses nothing that counts
#pragma omp simd reduction(+ : sum)
  for (int64_t e = 0; e < E; ++e) sum += prob[e] * (lse - logits[e]);
  return sum;
}

// With dw the gradient of the gates w, G that of the probabilities p, and sums over the chosen experts or over all:
//   d_logit_i = p_i (G_i - sum_all p_j G_j + d_lse)
//             + w_i (dw_i - sum_chosen w_j dw_j)               for the chosen ones, GateNorm::kTopK
//             + p_i (dw_i [i chosen] - sum_chosen p_j dw_j)    GateNorm::kNone
// In double: when the experts are balanced the differences are far smaller than their terms.
template <class T>
void token_backward(T* d, const T* dw, const double* G, double d_lse, const int32_t* id, const T* w, const T* p,
                    int64_t E, int64_t K, GateNorm norm) {
  double mean_dw = 0, mean_G = 0;
  for (int64_t k = 0; k < K; ++k) mean_dw += static_cast<double>(w[k]) * dw[k];
#pragma omp simd reduction(+ : mean_G)
  for (int64_t e = 0; e < E; ++e) mean_G += p[e] * G[e];
  const double offset_all = d_lse - mean_G - (norm == GateNorm::kNone ? mean_dw : 0);
  const double offset_chosen = norm == GateNorm::kTopK ? mean_dw : 0;
#pragma omp simd
  for (int64_t e = 0; e < E; ++e) d[e] = static_cast<T>(p[e] * (G[e] + offset_all));
  for (int64_t k = 0; k < K; ++k) d[id[k]] += static_cast<T>(w[k] * (dw[k] - offset_chosen));
}

}  // namespace

void router_forward(Context&, RouterOutputs out, const Tensor& logits, const Segments& segments, GateNorm norm) {
  const int64_t N = logits.dim(0), E = logits.dim(1), K = out.expert_id.dim(1);
  dispatch_float("logits", logits, [&]<class T> {
    int32_t* id = out.expert_id.data<int32_t>();
    T *gate = out.gate.data<T>(), *prob = out.prob.data<T>(), *lse = out.lse.data<T>();
    const T* logits_data = logits.data<T>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n) {
      lse[n] = softmax(prob + n * E, logits_data + n * E, E);
      route_token(id + n * K, gate + n * K, prob + n * E, E, K, segments.valid[n], norm);
    }
    sum_rows<T>(out, segments);
  });
}

void router_entropy(Context& ctx, Tensor out, const Tensor& logits, const RouterOutputs& router,
                    const Segments& segments) {
  const int64_t N = logits.dim(0), E = logits.dim(1);
  dispatch_float("logits", logits, [&]<class T> {
    const T *l = logits.data<T>(), *prob = router.prob.data<T>(), *lse = router.lse.data<T>();
    const uint8_t* valid = segments.valid.data();
    double* total = out.data<double>();
    if (!ctx.counts_only()) *total = 0;
    sum_rows_in_order(ctx, total, 1, N, kTileTokens, [=](double* sum, int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        if (valid[n]) *sum += entropy(prob + n * E, l + n * E, lse[n], E);
    });
  });
}

void router_backward(Context&, Tensor d_logits, const Tensor& d_gate, const Tensor& d_prob, double z_weight,
                     const RouterOutputs& out, const Segments& segments, GateNorm norm) {
  const int64_t N = d_logits.dim(0), E = d_logits.dim(1), K = d_gate.dim(1);
  dispatch_float("d_logits", d_logits, [&]<class T> {
    T* d_logits_data = d_logits.data<T>();
    const T *d_gate_data = d_gate.data<T>(), *gate = out.gate.data<T>();
    const T *prob = out.prob.data<T>(), *lse = out.lse.data<T>();
    const int32_t* id = out.expert_id.data<int32_t>();
    const double* G = d_prob.data<double>();
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; ++n) {
      if (segments.valid[n]) {
        token_backward(d_logits_data + n * E, d_gate_data + n * K, G + n / segments.row_tokens * E,
                       2 * z_weight * lse[n], id + n * K, gate + n * K, prob + n * E, E, K, norm);
      } else {
        std::fill_n(d_logits_data + n * E, E, T(0));
      }
    }
  });
}

}  // namespace braid::cpu
