#include "kernels/swiglu.h"

#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kSlots = 2;  // vectors of a row that a lane reads at a time

// A warp per row; reads a and b, writes h: 6NF bytes in bf16.
template <class V, class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    forward_kernel(X* h, const X* a, const X* b, const float* gate, int64_t N, int64_t F) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  constexpr int kStep = kWarpSize * V::kSize;
  const float scale = sigmoid(gate[n]);
  for (int64_t first = int64_t(threadIdx.x) * V::kSize; first < F; first += kSlots * kStep) {
    V va[kSlots], vb[kSlots];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t f = first + s * kStep;
      if (f >= F) continue;
      va[s] = V::load(a + n * F + f);
      vb[s] = V::load(b + n * F + f);
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t f = first + s * kStep;
      if (f >= F) continue;
      V product;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) product.set(i, scale * va[s][i] * sigmoid(va[s][i]) * vb[s][i]);
      product.store(h + n * F + f);
    }
  }
}

// A warp per row; reads d_h, a and b, writes d_a and d_b: 10NF bytes in bf16. A lane reads an element of d_h before it
// writes that of d_a, so they may be one tensor.
template <class V, class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    backward_kernel(X* d_a, X* d_b, X* d_gate, const X* d_h, const X* a, const X* b, const float* gate, int64_t N,
                    int64_t F) {
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (n >= N) return;
  constexpr int kStep = kWarpSize * V::kSize;
  const float scale = sigmoid(gate[n]);
  float d_scale = 0;
  for (int64_t first = int64_t(threadIdx.x) * V::kSize; first < F; first += kSlots * kStep) {
    V vg[kSlots], va[kSlots], vb[kSlots];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t f = first + s * kStep;
      if (f >= F) continue;
      vg[s] = V::load(d_h + n * F + f);
      va[s] = V::load(a + n * F + f);
      vb[s] = V::load(b + n * F + f);
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int64_t f = first + s * kStep;
      if (f >= F) continue;
      V of_a, of_b;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) {
        const float ai = va[s][i], bi = vb[s][i], si = sigmoid(ai), act = ai * si;
        d_scale += vg[s][i] * act * bi;
        const float d_product = scale * vg[s][i];
        of_a.set(i, d_product * bi * (si + act * (1 - si)));
        of_b.set(i, d_product * act);
      }
      of_a.store(d_a + n * F + f);
      of_b.store(d_b + n * F + f);
    }
  }
  d_scale = warp_sum(d_scale);
  if (threadIdx.x == 0) d_gate[n] = static_cast<X>(d_scale * scale * (1 - scale));
}

}  // namespace

void swiglu_forward(Context& ctx, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  dispatch_activation("a", a, [&]<class X> {
    dispatch_width<X>(F, {h.raw(), a.raw(), b.raw()}, [&]<class V> {
      forward_kernel<V, X><<<ceil_div(N, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(h), pointer<X>(a), pointer<X>(b), pointer<float>(gate), N, F);
      check_launch("swiglu_forward");
    });
  });
}

void swiglu_backward(Context& ctx, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  dispatch_activation("a", a, [&]<class X> {
    dispatch_width<X>(F, {d_a.raw(), d_b.raw(), d_h.raw(), a.raw(), b.raw()}, [&]<class V> {
      backward_kernel<V, X><<<ceil_div(N, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(d_a), pointer<X>(d_b), pointer<X>(d_gate), pointer<X>(d_h), pointer<X>(a), pointer<X>(b),
          pointer<float>(gate), N, F);
      check_launch("swiglu_backward");
    });
  });
}

}  // namespace braid::cuda
