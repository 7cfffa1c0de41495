#include "kernels/mtp_inputs.h"

#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Case {
  Tensor embedding = random_f64({3, 4}, 1), hidden = random_f64({3, 4}, 2);
  MtpInputWeights weights = {random_f64({4}, 3), random_f64({4}, 4)};
  MtpInputs out = {poisoned({3, 8}, DType::kF64), zeros_f64({3}), zeros_f64({3})};
};

TEST(MtpInputs, PutsTheEmbeddingFirst) {
  Context ctx = Context::cpu();
  Case c;
  mtp_inputs_forward(ctx, c.out, c.embedding, c.hidden, c.weights, 1e-6);
  const double *x = c.embedding.data<double>(), *h = c.hidden.data<double>();
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_DOUBLE_EQ(c.out.joined.data<double>()[n * 8 + i], x[n * 4 + i] * c.out.embedding_rstd.data<double>()[n] *
                                                                   (1 + c.weights.embedding_norm.data<double>()[i]));
      EXPECT_DOUBLE_EQ(c.out.joined.data<double>()[n * 8 + 4 + i], h[n * 4 + i] * c.out.hidden_rstd.data<double>()[n] *
                                                                       (1 + c.weights.hidden_norm.data<double>()[i]));
    }
}

}  // namespace
}  // namespace braid
