#include "kernels/cuda/split_weights.cuh"
#include "kernels/muon_passes.h"

namespace braid::cuda {
namespace {

constexpr int kThreads = 256;

// The elements of rows [begin, end) of a group, which lie one behind the other: of one group in the matrix, and where
// they are in (G, P, C). A block works in one group, blockIdx.y.
struct Chunk {
  int64_t elements, first, stride;  // stride: elements of a whole group
  __device__ __forceinline__ int64_t in_matrix(int64_t i) const { return blockIdx.y * elements + i; }
  __device__ __forceinline__ int64_t in_whole(int64_t i) const { return blockIdx.y * stride + first + i; }
};
Chunk chunk_of(const Tensor& whole, MuonRows rows) {
  const int64_t P = whole.dim(1), C = whole.dim(2);
  return {(rows.end - rows.begin) * C, rows.begin * C, P * C};
}

// A thread owns kCount consecutive elements. Reads gradient and momentum, writes momentum and direction: 14 bytes per
// element with an fp32 momentum and gradient and a bf16 direction.
template <int kCount, class X, class Moment, class Gradient>
__global__ void __launch_bounds__(kThreads)
    direction_kernel(X* direction, Moment* momentum, const Gradient* gradient, Chunk chunk, float mu, float scale) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (i >= chunk.elements) return;
  const int64_t at = chunk.in_whole(i);
  const auto d = Pack<Gradient, kCount>::load(gradient + at);
  auto m = Pack<Moment, kCount>::load(momentum + at);
  Pack<X, kCount> out;
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float g = scale * d[k], sum = mu * m[k] + g;
    m.set(k, sum);
    out.set(k, g + mu * sum);
  }
  m.store(momentum + at);
  out.store(direction + chunk.in_matrix(i));
}

// A thread owns kCount consecutive elements; reads and writes x once.
template <int kCount, class X>
__global__ void __launch_bounds__(kThreads) normalize_kernel(X* x, const double* sum, int64_t n) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (i >= n) return;
  const float factor = static_cast<float>(1 / (sqrt(*sum) + NewtonSchulz::kEps));
  auto pack = Pack<X, kCount>::load(x + i);
#pragma unroll
  for (int k = 0; k < kCount; ++k) pack.set(k, factor * pack[k]);
  pack.store(x + i);
}

// A thread owns kCount consecutive elements of a row, blockIdx.y; reads both matrices, writes one.
template <int kCount, class X>
__global__ void __launch_bounds__(kThreads) polynomial_kernel(X* square, const X* gram, int64_t m) {
  const int64_t row = blockIdx.y, column = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (column >= m) return;
  const auto s = Pack<X, kCount>::load(gram + row * m + column);
  auto out = Pack<X, kCount>::load(square + row * m + column);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const float diagonal = column + k == row ? static_cast<float>(NewtonSchulz::kA) : 0;
    out.set(k, static_cast<float>(NewtonSchulz::kB) * s[k] + static_cast<float>(NewtonSchulz::kC) * out[k] + diagonal);
  }
  out.store(square + row * m + column);
}

// A thread owns kCount consecutive elements. Reads direction and masters, writes masters: 10 bytes per element with a
// bf16 direction.
template <int kCount, class X, class Weight>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(Weight* weight, int16_t* low, const X* direction, Chunk chunk, float rate, float decay) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (i >= chunk.elements) return;
  const int64_t at = chunk.in_whole(i);
  const auto x = Pack<X, kCount>::load(direction + chunk.in_matrix(i));
  Masters<Weight, kCount> w(weight, low, at);
#pragma unroll
  for (int k = 0; k < kCount; ++k) w.master[k] -= rate * x[k] + decay * w.master[k];
  w.store(weight, low, at);
}

dim3 blocks(int64_t elements, int count, int64_t groups) {
  return dim3(static_cast<unsigned>(ceil_div(elements, int64_t(kThreads) * count)), static_cast<unsigned>(groups));
}

}  // namespace

void muon_direction(Context& ctx, Tensor direction, Tensor momentum, const Tensor& gradient, MuonRows rows, double mu,
                    double scale) {
  const Chunk chunk = chunk_of(gradient, rows);
  dispatch_activation("direction", direction, [&]<class X> {
    dispatch_activation("momentum", momentum, [&]<class Moment> {
      dispatch_activation("gradient", gradient, [&]<class Gradient> {
        dispatch_count(gradient.dim(2), {&direction, &momentum, &gradient}, [&]<int kCount> {
          direction_kernel<kCount, X, Moment, Gradient>
              <<<blocks(chunk.elements, kCount, gradient.dim(0)), kThreads, 0, stream_of(ctx)>>>(
                  pointer<X>(direction), pointer<Moment>(momentum), pointer<Gradient>(gradient), chunk,
                  static_cast<float>(mu), static_cast<float>(scale));
          check_launch("muon_direction");
        });
      });
    });
  });
}

void muon_normalize(Context& ctx, Tensor x, const Tensor& sum) {
  dispatch_activation("x", x, [&]<class X> {
    dispatch_count(x.numel(), {&x}, [&]<int kCount> {
      normalize_kernel<kCount, X><<<blocks(x.numel(), kCount, 1), kThreads, 0, stream_of(ctx)>>>(
          pointer<X>(x), pointer<double>(sum), x.numel());
      check_launch("muon_normalize");
    });
  });
}

void muon_polynomial(Context& ctx, Tensor square, const Tensor& gram) {
  const int64_t m = gram.dim(0);
  dispatch_activation("gram", gram, [&]<class X> {
    dispatch_count(m, {&square, &gram}, [&]<int kCount> {
      polynomial_kernel<kCount, X>
          <<<blocks(m, kCount, m), kThreads, 0, stream_of(ctx)>>>(pointer<X>(square), pointer<X>(gram), m);
      check_launch("muon_polynomial");
    });
  });
}

void muon_apply(Context& ctx, Tensor weight, Tensor low, const Tensor& direction, MuonRows rows, double rate,
                double decay) {
  const Chunk chunk = chunk_of(weight, rows);
  dispatch_activation("direction", direction, [&]<class X> {
    dispatch_activation("weight", weight, [&]<class Weight> {
      dispatch_count(weight.dim(2), {&weight, &low, &direction}, [&]<int kCount> {
        apply_kernel<kCount, X, Weight><<<blocks(chunk.elements, kCount, weight.dim(0)), kThreads, 0, stream_of(ctx)>>>(
            pointer<Weight>(weight), pointer<int16_t>(low), pointer<X>(direction), chunk, static_cast<float>(rate),
            static_cast<float>(decay));
        check_launch("muon_apply");
      });
    });
  });
}

}  // namespace braid::cuda
