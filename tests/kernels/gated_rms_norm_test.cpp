#include "kernels/gated_rms_norm.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr GdnDims kDims{.key_heads = 2, .value_heads = 4, .key_dim = 3, .value_dim = 5, .conv_kernel = 4};
constexpr double kEps = 1e-6;

struct Norm {
  explicit Norm(int64_t N, DType dtype = DType::kF64, const GdnDims& d = kDims)
      : dims(d),
        o(random_normal({N, d.value_heads, d.value_dim}, dtype, 1)),
        qkvz(random_normal({N, d.qkvz_columns()}, dtype, 2)),
        weight(random_normal({d.value_dim}, dtype, 3)),
        d_y(random_normal(o.shape(), dtype, 4)),
        y(poisoned(o.shape(), dtype)),
        rstd(poisoned({N, d.value_heads}, dtype)),
        d_o(poisoned(o.shape(), dtype)),
        d_qkvz(zeros(qkvz.shape(), dtype)),
        d_weight(zeros(weight.shape(), dtype)) {}
  void forward() { gated_rms_norm_forward(ctx, y, rstd, o, qkvz, weight, kEps, dims); }
  void backward() { gated_rms_norm_backward(ctx, d_o, d_qkvz, d_weight, d_y, o, rstd, qkvz, weight, dims); }

  Context ctx = Context::cpu();
  GdnDims dims;
  Tensor o, qkvz, weight, d_y, y, rstd, d_o, d_qkvz, d_weight;
};

TEST(GatedRmsNorm, ScalesPlainlyThenGates) {
  // One value head of size 2; columns of qkvz: q, k, v v, z z.
  const GdnDims dims{.key_heads = 1, .value_heads = 1, .key_dim = 1, .value_dim = 2, .conv_kernel = 4};
  Norm norm(1, DType::kF64, dims);
  norm.o = tensor_of<double>({3, 4}, {1, 1, 2});
  norm.weight = tensor_of<double>({2, 1}, {2});
  norm.qkvz = tensor_of<double>({9, 9, 9, 9, std::log(3), 0}, {1, 6});  // silu(log 3) = 3/4 log 3
  norm.forward();
  const double r = 1 / std::sqrt(12.5 + kEps);
  EXPECT_DOUBLE_EQ(norm.y.data<double>()[0], 2 * 3 * r * 0.75 * std::log(3));
  EXPECT_EQ(norm.y.data<double>()[1], 0);
  EXPECT_DOUBLE_EQ(norm.rstd.data<double>()[0], r);
}

TEST(GatedRmsNorm, ReadsTheGateOfItsValueHead) {
  // Two key heads of two value heads: a block of qkvz is q q q, k k k, 10 of v, 10 of z.
  Norm norm(2);
  for (int64_t i = 0; i < norm.qkvz.numel(); ++i) norm.qkvz.data<double>()[i] = 0;  // closed
  norm.qkvz.data<double>()[52 + 26 + 16 + 5 + 3] = 1;  // token 1, key head 1, its second value head, element 3
  norm.forward();
  for (int64_t i = 0; i < norm.y.numel(); ++i) EXPECT_EQ(norm.y.data<double>()[i] != 0, i == (1 * 4 + 3) * 5 + 3) << i;
}

TEST(GatedRmsNormGradient, WritesOnlyTheGateColumnsAndAddsToTheWeight) {
  Norm norm(3);
  norm.forward();
  norm.backward();
  const Tensor once = copy_of(norm.d_qkvz), d_weight_once = copy_of(norm.d_weight);
  std::fill_n(norm.d_qkvz.data<double>(), norm.d_qkvz.numel(), 7.0);
  norm.backward();
  for (int64_t i = 0; i < once.numel(); ++i) {
    const bool is_gate = i % 26 >= 16;  // of the 26 columns of a block
    EXPECT_EQ(norm.d_qkvz.data<double>()[i], is_gate ? once.data<double>()[i] : 7.0) << i;
  }
  for (int64_t c = 0; c < 5; ++c) EXPECT_EQ(norm.d_weight.data<double>()[c], 2 * d_weight_once.data<double>()[c]) << c;
}

TEST(GatedRmsNorm, NamesTheTensorOfAWrongShapeOrDtype) {
  Norm norm(3);
  norm.qkvz = zeros_f64({3, 51});
  EXPECT_EQ(message_of<ShapeError>([&] { norm.forward(); }), "qkvz: expected shape (3, 52), got (3, 51)");
  norm = Norm(3);
  norm.d_weight = zeros({5}, DType::kF32);
  EXPECT_EQ(message_of<DTypeError>([&] { norm.backward(); }), "d_weight: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
