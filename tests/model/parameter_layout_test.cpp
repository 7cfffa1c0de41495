#include "model/parameter_layout.h"

#include <cmath>
#include <set>

#include "tests/testing.h"
#include "trainer/plan.h"

namespace braid {
namespace {

using namespace braid::testing;

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 7;
  c.hidden_size = 8;
  c.num_hidden_layers = 4;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.head_dim = 4;
  c.partial_rotary_factor = 0.5;
  c.linear_num_key_heads = 1;
  c.linear_num_value_heads = 2;
  c.linear_key_head_dim = 4;
  c.linear_value_head_dim = 4;
  c.num_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 4;
  c.shared_expert_intermediate_size = 4;
  return c;
}

const Parameter& find(const std::vector<Parameter>& table, const std::string& name) {
  for (const Parameter& p : table)
    if (p.name == name) return p;
  throw std::runtime_error("no parameter " + name);
}

// Counts of the released model, model-spec 1.2.
TEST(ParameterTable, HasTheCountsOfTheReleasedModel) {
  const ParameterCounts n = count_parameters(ModelConfig{}, MtpConfig{});
  EXPECT_EQ(n.embedding, 311164928);
  EXPECT_EQ(n.head, 311164928);
  EXPECT_EQ(n.routed_experts, 77309411328);
  EXPECT_EQ(n.main, 79674391296);
  EXPECT_EQ(n.main - n.embedding - n.head, 79052061440);
  EXPECT_EQ(n.mtp, 1650471424);
  EXPECT_EQ(n.total(), 81324862720);
  EXPECT_EQ(n.active_main, 3252599552);
  EXPECT_EQ(n.active_main + n.head, 3563764480);
  EXPECT_EQ(n.active_mtp, 71315968 + 8388608 - 8388608);
  EXPECT_EQ(n.mixers, 36 * int64_t{33718464} + 12 * int64_t{27263488});
}

TEST(ParameterTable, FollowsTheLayerPatternAndNamesOfTheReleasedFiles) {
  const auto table = parameter_table(ModelConfig{}, MtpConfig{});
  std::set<std::string> names;
  for (const Parameter& p : table) EXPECT_TRUE(names.insert(p.name).second) << p.name << " appears twice";
  EXPECT_EQ(find(table, "model.layers.3.self_attn.q_proj.weight").shape, Shape({8192, 2048}));
  EXPECT_EQ(find(table, "model.layers.0.linear_attn.in_proj_qkvz.weight").shape, Shape({12288, 2048}));
  EXPECT_EQ(find(table, "model.layers.0.linear_attn.conv1d.weight").shape, Shape({8192, 1, 4}));
  EXPECT_EQ(find(table, "model.layers.47.mlp.experts.gate_up_proj").shape, Shape({512, 1024, 2048}));
  EXPECT_EQ(find(table, "mtp.fc.weight").shape, Shape({2048, 4096}));
  EXPECT_EQ(names.count("model.layers.3.linear_attn.A_log"), 0u);
  EXPECT_EQ(find(table, "model.layers.2.linear_attn.A_log").decay, Decay::kNever);
  EXPECT_EQ(find(table, "model.layers.2.linear_attn.norm.weight").decay, Decay::kNever);
  EXPECT_EQ(find(table, "model.layers.3.self_attn.k_norm.weight").decay, Decay::kQkNorm);
  EXPECT_EQ(find(table, "model.norm.weight").decay, Decay::kNorm);
}

// The ranks' shards together are the whole model, and its weights do not depend on how it is cut.
TEST(ParameterLayout, EveryCutStartsFromTheSameWeights) {
  Context ctx = Context::cpu();
  const ModelConfig c = small_config();
  const ParameterLayout whole(c, {}, 1, 0, 1, 1);
  Tensor dense = zeros({whole.dense().numel}, DType::kF32), expert = zeros({whole.expert().numel}, DType::kF32);
  initialize_weights(ctx, c, {}, whole, dense, expert, 42);
  for (int64_t ranks : {2, 4}) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const ParameterLayout part(c, {}, ranks, rank, 8, 3);
      EXPECT_EQ(part.dense().numel % 8, 0);
      EXPECT_EQ(part.expert().shard_numel * 3, part.expert().numel);
      Tensor part_dense = zeros({part.dense().numel}, DType::kF32),
             part_expert = zeros({part.expert().numel}, DType::kF32);
      initialize_weights(ctx, c, {}, part, part_dense, part_expert, 42);
      for (size_t i = 0; i < part.expert().parameters.size(); ++i) {
        const FlatParameter &p = part.expert().parameters[i], &w = whole.expert().parameters[i];
        const int64_t first = w.offset + p.global_first;
        expect_same_bits(part_expert.rows(p.offset, p.offset + p.local_numel),
                         expert.rows(first, first + p.local_numel));
      }
      const int64_t used = whole.dense().parameters.back().offset + whole.dense().parameters.back().local_numel;
      expect_same_bits(part_dense.rows(0, used), dense.rows(0, used));
    }
  }
}

TEST(ParameterLayout, InitialValuesFollowTheTable) {
  Context ctx = Context::cpu();
  const ModelConfig c = small_config();
  const ParameterLayout layout(c, {}, 1, 0, 1, 1);
  Tensor dense = zeros_f64({layout.dense().numel}), expert = zeros_f64({layout.expert().numel});
  initialize_weights(ctx, c, {}, layout, dense, expert, 7);
  ModelParams params(c, {});
  layout.bind(params, dense, expert);
  const Tensor& router = params.layers[0].moe.router;
  for (int64_t e = 0; e < 4; ++e) {
    Tensor row = router.rows(e, e + 1);
    EXPECT_NEAR(std::sqrt(dot(row, row)), 0.02 * std::sqrt(8.0), 1e-12);
  }
  const auto& gdn = std::get<GatedDeltaNetParams>(params.layers[0].mixer);
  for (int64_t h = 0; h < 2; ++h) {
    EXPECT_GE(gdn.inputs.a_log.data<double>()[h], 0);
    EXPECT_LE(gdn.inputs.a_log.data<double>()[h], std::log(16.0));
    EXPECT_EQ(gdn.inputs.dt_bias.data<double>()[h], 1);
  }
  EXPECT_EQ(params.norm.data<double>()[0], 0);
  EXPECT_EQ(gdn.norm.data<double>()[0], 1);
}

}  // namespace
}  // namespace braid
