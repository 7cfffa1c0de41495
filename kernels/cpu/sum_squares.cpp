#include "kernels/sum_squares.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/ordered_sum.h"

namespace braid::cpu {
namespace {

constexpr int64_t kBlock = 4096;

// A function of its own: GCC 12 turns the same loop over a pointer captured by a lambda into gathers, ten times slower.
template <class T>
double block_sum(const T* x, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

}  // namespace

void sum_squares(Context& ctx, Tensor out, const Tensor& x) {
  dispatch_float("x", x, [&]<class T> {
    const T* data = x.data<T>();
    double* total = out.data<double>();
    if (!ctx.counts_only()) *total = 0;
    sum_rows_in_order(ctx, total, 1, x.numel(), kBlock, [=](double* partial, int64_t begin, int64_t end) {
      *partial = block_sum(data + begin, end - begin);
    });
  });
}

}  // namespace braid::cpu
