#include "kernels/swiglu.h"

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/swiglu_row.h"

namespace braid::cpu {

void swiglu_forward(Context&, Tensor h, const Tensor& a, const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  dispatch_float("a", a, [&]<class T> {
    T* h_data = h.data<T>();
    const T *a_data = a.data<T>(), *b_data = b.data<T>(), *gate_data = gate.data<T>();
#pragma omp parallel for schedule(static) if (N > 1)
    for (int64_t n = 0; n < N; ++n)
      swiglu_row(h_data + n * F, a_data + n * F, b_data + n * F, sigmoid(gate_data[n]), F);
  });
}

void swiglu_backward(Context&, Tensor d_a, Tensor d_b, Tensor d_gate, const Tensor& d_h, const Tensor& a,
                     const Tensor& b, const Tensor& gate) {
  const int64_t N = a.dim(0), F = a.dim(1);
  dispatch_float("a", a, [&]<class T> {
    T *da = d_a.data<T>(), *db = d_b.data<T>(), *d_gate_data = d_gate.data<T>();
    const T *dh = d_h.data<T>(), *a_data = a.data<T>(), *b_data = b.data<T>(), *gate_data = gate.data<T>();
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t row = n * F;
      const T s = sigmoid(gate_data[n]);
      const T d_s = swiglu_row_backward<RecomputeH::kNo, T>(da + row, db + row, nullptr, dh + row, a_data + row,
                                                            b_data + row, s, F);
      d_gate_data[n] = d_s * s * (1 - s);
    }
  });
}

}  // namespace braid::cpu
