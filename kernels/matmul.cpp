#include "kernels/matmul.h"

#include "kernels/build_config.h"
#include "kernels/core/profile.h"
#include "kernels/on_device.h"

namespace braid {

namespace cpu {
decltype(braid::matmul) matmul;
}
namespace cuda {
decltype(braid::matmul) matmul;
decltype(braid::matmul_implementation) matmul_implementation;
}  // namespace cuda

namespace {

Shape stored_shape(int64_t rows, int64_t columns, Transpose transpose) {
  return transpose == Transpose::kNo ? Shape{rows, columns} : Shape{columns, rows};
}

// An output in the dtype of the factors, or wider.
void check_output_dtype(const char* name, const Tensor& out, DType factors) {
  if (out.dtype() != wide_dtype(factors)) check_dtype(factors, {{name, out}});
}

}  // namespace

void matmul(Context& ctx, Tensor c, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Accumulate accumulate) {
  const OperatorScope scope(ctx, "matmul");
  const int64_t M = c.dim(0), N = c.dim(1), K = transpose_a == Transpose::kNo ? a.dim(1) : a.dim(0);
  check_shapes(
      {{"c", c, {M, N}}, {"a", a, stored_shape(M, K, transpose_a)}, {"b", b, stored_shape(K, N, transpose_b)}});
  check_dtype(a.dtype(), {{"b", b}});
  check_output_dtype("c", c, a.dtype());
  if (M == 0 || N == 0) return;
  on_device<cpu::matmul, cuda::matmul>(ctx, c, a, transpose_a, b, transpose_b, accumulate);
}

void linear_forward(Context& ctx, Tensor y, const Tensor& x, const Tensor& weight, Accumulate accumulate) {
  const OperatorScope scope(ctx, "linear_forward");
  const int64_t N = x.dim(0), I = x.dim(1), O = weight.dim(0);
  check_shapes({{"y", y, {N, O}}, {"x", x, {N, I}}, {"weight", weight, {O, I}}});
  check_dtype(x.dtype(), {{"weight", weight}});
  check_output_dtype("y", y, x.dtype());
  matmul(ctx, y, x, Transpose::kNo, weight, Transpose::kYes, accumulate);
}

void linear_backward_input(Context& ctx, Tensor d_x, const Tensor& d_y, const Tensor& weight, Accumulate accumulate) {
  const OperatorScope scope(ctx, "linear_backward_input");
  const int64_t N = d_y.dim(0), O = d_y.dim(1), I = weight.dim(1);
  check_shapes({{"d_x", d_x, {N, I}}, {"d_y", d_y, {N, O}}, {"weight", weight, {O, I}}});
  check_dtype(d_y.dtype(), {{"weight", weight}});
  check_output_dtype("d_x", d_x, d_y.dtype());
  matmul(ctx, d_x, d_y, Transpose::kNo, weight, Transpose::kNo, accumulate);
}

void linear_backward_weight(Context& ctx, Tensor d_weight, const Tensor& d_y, const Tensor& x) {
  const OperatorScope scope(ctx, "linear_backward_weight");
  const int64_t N = d_y.dim(0), O = d_y.dim(1), I = x.dim(1);
  check_shapes({{"d_weight", d_weight, {O, I}}, {"d_y", d_y, {N, O}}, {"x", x, {N, I}}});
  check_dtype(d_y.dtype(), {{"x", x}});
  check_output_dtype("d_weight", d_weight, d_y.dtype());
  matmul(ctx, d_weight, d_y, Transpose::kYes, x, Transpose::kNo, Accumulate::kYes);
}

Implementation matmul_implementation(const Context& ctx, DType dtype, int64_t width) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::matmul_implementation(ctx, dtype, width);
  }
  return {"CPU", ""};
}

}  // namespace braid
