// A rank with more expert rows than its buffers hold works through them in rounds, and nobody can tell from the result.
#include <cstring>

#include "kernels/build_config.h"
#include "parallel/nccl_communicator.h"
#include "tests/model/tiny_model.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kRows = 8, kRowTokens = 540;  // of a rank: 2160 rows for each of four experts

ModelConfig tiny_config() {
  ModelConfig c = tiny_model_config();
  c.num_experts = 4 * world().size();
  return c;
}

// Heads and widths that the kernels of a GPU take.
ModelConfig gpu_config() {
  ModelConfig c = tiny_config();
  c.vocab_size = 320;
  c.hidden_size = 128;
  c.head_dim = 256;
  c.partial_rotary_factor = 0.25;
  c.linear_key_head_dim = c.linear_value_head_dim = 128;
  c.moe_intermediate_size = c.shared_expert_intermediate_size = 64;
  return c;
}

// A model whose experts are spread over all ranks, every token's on the first: of experts v, -v, u, -u two always win.
struct RankModel {
  Context& ctx;
  const ModelConfig config;
  ParameterLayout layout;
  Model model;
  BalanceLoss balance;
  BalanceGradients balance_gradients;
  std::vector<Tensor> weights, gradients;
  Arena memory;

  RankModel(Context& ctx, const ProcessMesh& mesh, const ModelConfig& config, DType dtype, double max_rows_factor)
      : ctx(ctx),
        config(config),
        layout(config, {}, mesh),
        model(config, {}, {kRows, kRowTokens}, dtype, mesh.expert(), max_rows_factor),
        balance(BalanceConfig{}, model.num_moe_layers(), config.num_experts, mesh.world()) {
    Planner plan;
    layout.plan_weights(plan, weights, dtype);
    layout.plan_gradients(plan, gradients, wide_dtype(dtype));
    model.plan_activations(plan);
    balance.plan(plan);
    balance.plan_gradients(plan, balance_gradients, kRows);
    memory = Arena("a model in rounds", plan, ctx.device());
    layout.bind(model.weights(), weights);
    layout.bind(model.gradients(), gradients);
    load_weights(ctx, InitialWeights(config, {}, 5), layout, weights);
    for (auto& layer : model.weights().layers) send_all_to_the_first(layer.moe.router);
    send_all_to_the_first(model.weights().mtp[0].layer.moe.router);
  }

  void send_all_to_the_first(Tensor router) {
    const int64_t element = size_of(router.dtype()), row = router.dim(1) * element;
    Tensor host = on_cpu(router);
    auto* bytes = static_cast<std::byte*>(host.raw());
    std::memset(bytes + 4 * row, 0, host.bytes() - 4 * row);
    for (int64_t e : {0, 2}) {
      std::memcpy(bytes + (e + 1) * row, bytes + e * row, row);
      for (int64_t sign = element - 1; sign < row; sign += element) bytes[(e + 1) * row + sign] ^= std::byte{0x80};
    }
    copy(ctx, router, host);
  }

  Tensor on_cpu(const Tensor& tensor) {
    Tensor host = allocate(tensor.shape(), tensor.dtype());
    copy(ctx, host, tensor);
    return host;
  }

  // Two micro-batches of a step; the losses of each, forward alone and with backward.
  std::vector<double> step() {
    std::vector<double> losses;
    for (Tensor& gradient : gradients) fill_zero(ctx, gradient);
    for (int micro = 0; micro < 2; ++micro) {
      const Batch batch = random_batch(std::vector<std::vector<int64_t>>(kRows, {17, kRowTokens - 20}),
                                       config.vocab_size, 100 + 2 * world().rank() + micro, 3);
      const double tokens = double(batch.counts.tokens);
      model.forward(ctx, batch);
      const LossSums alone = model.losses(ctx);
      balance.begin_step(ctx, std::vector<int64_t>(model.num_moe_layers(), batch.counts.tokens));
      balance.count(ctx, model.routers());
      balance.prepare_backward(ctx, balance_gradients, model.routers());
      const LossSums sums = model.losses_and_backward(ctx, {1 / tokens, 0.3 / tokens}, balance_gradients, {},
                                                      micro == 0 ? Accumulate::kNo : Accumulate::kYes);
      losses.insert(losses.end(), {alone.lm, alone.mtp, sums.lm, sums.mtp});
    }
    return losses;
  }
};

void expect_same_bits_in_rounds(Context& ctx, const ProcessMesh& mesh, const ModelConfig& config, DType dtype) {
  SCOPED_TRACE(name_of(dtype));
  RankModel whole(ctx, mesh, config, dtype, 0), in_rounds(ctx, mesh, config, dtype, 0.01);
  const std::vector<double> losses = whole.step();
  EXPECT_EQ(in_rounds.step(), losses);
  for (double loss : losses) EXPECT_TRUE(std::isfinite(loss) && loss > 0);
  auto same = [&](const Tensor& a, const Tensor& b, const char* what) {
    expect_same_bits(whole.on_cpu(a), whole.on_cpu(b), what);
  };
  same(in_rounds.model.hidden(), whole.model.hidden(), "hidden");
  same(in_rounds.model.mtp_hidden(), whole.model.mtp_hidden(), "the MTP block's hidden");
  for (size_t i = 0; i < whole.gradients.size(); ++i)
    same(in_rounds.gradients[i], whole.gradients[i], whole.layout.groups()[i].name.c_str());

  EXPECT_EQ(whole.model.overflow_rounds(), 0);
  // Of the first rank in two layers and the MTP block: each has as many rows as two for each valid token of all.
  const int64_t rows = 2 * kRows * (kRowTokens - 3) * world().size();
  if (world().rank() == 0) EXPECT_GE(in_rounds.model.overflow_rounds(), 3 * (rows / 4096));
  else EXPECT_EQ(in_rounds.model.overflow_rounds(), 0);
}

TEST(ExpertRounds, HaveTheBitsOfAllRowsAtOnce) {
  Context ctx = Context::cpu();
  const ProcessMesh mesh(world().split(0), world().size(), tiny_config().num_experts);
  for (const DType dtype : {DType::kF32, DType::kF64}) expect_same_bits_in_rounds(ctx, mesh, tiny_config(), dtype);
}

// The last ranks, without a row, are far ahead of the first.
TEST(ExpertRounds, HaveTheBitsOfAllRowsAtOnceOnGpus) {
  if (Context::num_gpus() < world().size())
    GTEST_SKIP() << "there is no GPU here for each of " << world().size() << " ranks";
  if constexpr (kWithCuda) {
    Context ctx = Context::gpu(world().rank());
    const ProcessMesh mesh(make_nccl_communicator(ctx, world().split(0)), world().size(), gpu_config().num_experts);
    for (const DType dtype : {DType::kBF16, DType::kF32}) expect_same_bits_in_rounds(ctx, mesh, gpu_config(), dtype);
  }
}

}  // namespace
}  // namespace braid
