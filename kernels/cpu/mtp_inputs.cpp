#include "kernels/mtp_inputs.h"

#include <algorithm>

#include "kernels/cpu/dispatch.h"
#include "kernels/rms_norm.h"

namespace braid::cpu {
namespace {

// Columns [first, first + C) of the (N, 2C) tensor `joined`, from or to the (N, C) tensor `half`.
// They do nothing in a context that only counts, where there is no `half`.
template <class T>
void write_half(T* joined, const T* half, int64_t first, int64_t N, int64_t C) {
  if (!half) return;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; ++n) std::copy_n(half + n * C, C, joined + n * 2 * C + first);
}
template <class T>
void read_half(T* half, const T* joined, int64_t first, int64_t N, int64_t C) {
  if (!half) return;
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; ++n) std::copy_n(joined + n * 2 * C + first, C, half + n * C);
}

}  // namespace

void mtp_inputs_forward(Context& ctx, MtpInputs out, const Tensor& embedding, const Tensor& hidden,
                        const MtpInputWeights& weights, double eps) {
  const int64_t N = embedding.dim(0), C = embedding.dim(1);
  Scratch scratch(ctx);
  Tensor half = scratch.tensor({N, C}, embedding.dtype());
  dispatch_float("embedding", embedding, [&]<class T> {
    rms_norm_forward(ctx, half, out.embedding_rstd, embedding, weights.embedding_norm, eps);
    write_half(out.joined.data<T>(), half.data<T>(), 0, N, C);
    rms_norm_forward(ctx, half, out.hidden_rstd, hidden, weights.hidden_norm, eps);
    write_half(out.joined.data<T>(), half.data<T>(), C, N, C);
  });
}

void mtp_inputs_backward(Context& ctx, Tensor d_embedding, Tensor d_hidden, MtpInputWeights d_weights,
                         const Tensor& d_joined, const Tensor& embedding, const Tensor& hidden, const MtpInputs& out,
                         const MtpInputWeights& weights) {
  const int64_t N = embedding.dim(0), C = embedding.dim(1);
  Scratch scratch(ctx);
  Tensor half = scratch.tensor({N, C}, embedding.dtype());
  dispatch_float("embedding", embedding, [&]<class T> {
    read_half(half.data<T>(), d_joined.data<T>(), 0, N, C);
    rms_norm_backward(ctx, d_embedding, d_weights.embedding_norm, half, embedding, weights.embedding_norm,
                      out.embedding_rstd);
    read_half(half.data<T>(), d_joined.data<T>(), C, N, C);
    add_rms_norm_backward(ctx, d_hidden, d_weights.hidden_norm, half, hidden, weights.hidden_norm, out.hidden_rstd);
  });
}

}  // namespace braid::cpu
