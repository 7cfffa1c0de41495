#include "kernels/muon.h"

#include <algorithm>
#include <cmath>

#include "kernels/build_config.h"
#include "kernels/core/copy.h"
#include "kernels/matmul.h"
#include "kernels/muon_passes.h"
#include "kernels/split_weights.h"
#include "kernels/sum_squares.h"

namespace braid {
namespace {

struct Passes {
  MuonDirection* direction;
  MuonNormalize* normalize;
  MuonPolynomial* polynomial;
  MuonApply* apply;
};
template <class... Arguments>
void nothing(Arguments...) {}

Passes passes_of(const Context& ctx) {
  if (ctx.counts_only()) return {nothing, nothing, nothing, nothing};  // they take no scratch
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return {cuda::muon_direction, cuda::muon_normalize, cuda::muon_polynomial, cuda::muon_apply};
  }
  return {cpu::muon_direction, cpu::muon_normalize, cpu::muon_polynomial, cpu::muon_apply};
}

// The iteration on x and a second matrix like it. Returns the one that holds the result.
Tensor iterate(Context& ctx, Tensor x, Tensor other) {
  const int64_t M = x.dim(0), N = x.dim(1), m = std::min(M, N);
  const Passes pass = passes_of(ctx);
  Scratch scratch(ctx);
  Tensor sum = scratch.tensor({1}, DType::kF64);
  sum_squares(ctx, sum, x);
  pass.normalize(ctx, x, sum);
  // The powers of a tall matrix stand on its right, where they are smaller.
  const bool tall = M > N;
  Tensor gram = scratch.tensor({m, m}, x.dtype()), factor = scratch.tensor({m, m}, x.dtype());
  for (int step = 0; step < 5; ++step) {
    if (tall) matmul(ctx, gram, x, Transpose::kYes, x, Transpose::kNo);
    else matmul(ctx, gram, x, Transpose::kNo, x, Transpose::kYes);
    matmul(ctx, factor, gram, Transpose::kNo, gram, Transpose::kNo);
    pass.polynomial(ctx, factor, gram);  // with a on its diagonal: one pass less than adding a x, and less rounding
    if (tall) matmul(ctx, other, x, Transpose::kNo, factor, Transpose::kNo);
    else matmul(ctx, other, factor, Transpose::kNo, x, Transpose::kNo);
    std::swap(x, other);
  }
  return x;
}

}  // namespace

void newton_schulz(Context& ctx, Tensor x) {
  check_shapes({{"x", x, {x.dim(0), x.dim(-1)}}});
  if (x.numel() == 0) return;
  Scratch scratch(ctx);
  const Tensor result = iterate(ctx, x, scratch.tensor(x.shape(), x.dtype()));
  if (result.raw() != x.raw()) copy(ctx, x, result);
}

void muon_update(Context& ctx, MuonState state, const Tensor& gradient, MuonRows rows, const MuonStep& step) {
  const auto& [weight, momentum, low] = state;
  const Shape& whole = weight.shape();
  check_shapes({{"weight", weight, {whole[0], whole[1], whole[2]}}});
  check_shapes({{"momentum", momentum, whole}, {"gradient", gradient, whole}});
  check_low_bits(weight, low);
  const DType wide = wide_dtype(weight.dtype());
  if (!ctx.on_cuda() || gradient.dtype() != weight.dtype()) check_dtype(wide, {{"gradient", gradient}});
  if (!ctx.on_cuda() || momentum.dtype() != DType::kBF16) check_dtype(wide, {{"momentum", momentum}});
  assert(0 <= rows.begin && rows.begin <= rows.end && rows.end <= whole[1]);
  const int64_t M = whole[0] * (rows.end - rows.begin), C = whole[2];
  if (M == 0 || C == 0) return;

  const Passes pass = passes_of(ctx);
  Scratch scratch(ctx);
  Tensor direction = scratch.tensor({M, C}, step.products), other = scratch.tensor({M, C}, step.products);
  pass.direction(ctx, direction, momentum, gradient, rows, step.momentum, step.gradient_scale);
  const double rate = step.lr * step.update_rms * std::sqrt(static_cast<double>(std::max(M, C)));
  pass.apply(ctx, weight, low, iterate(ctx, direction, other), rows, rate, step.lr * step.weight_decay);
}

}  // namespace braid
