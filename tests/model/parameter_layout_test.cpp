#include "model/parameter_layout.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/core/float_types.h"
#include "model/initial_weights.h"
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

std::vector<Tensor> initial_weights(const ModelConfig& c, const ParameterLayout& layout, DType dtype, uint64_t seed) {
  Context ctx = Context::cpu();
  std::vector<Tensor> flat;
  for (const FlatGroup& group : layout.groups()) flat.push_back(zeros({group.numel}, dtype));
  load_weights(ctx, InitialWeights(c, {}, seed), layout, flat);
  return flat;
}

// The ranks' shards together are the whole model, and its weights do not depend on how it is cut.
TEST(ParameterLayout, EveryCutStartsFromTheSameWeights) {
  const ModelConfig c = small_config();
  const ParameterLayout whole(c, {}, 1, 0, 1, 1);
  const std::vector<Tensor> weights = initial_weights(c, whole, DType::kF32, 42);
  for (int64_t ranks : {2, 4}) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const ParameterLayout part(c, {}, ranks, rank, 8, 3);
      const std::vector<Tensor> part_weights = initial_weights(c, part, DType::kF32, 42);
      for (size_t g = 0; g < part.groups().size(); ++g) {
        const FlatGroup &group = part.groups()[g], &whole_group = whole.groups()[g];
        EXPECT_EQ(group.shard_numel * (group.owner == Owner::kExpertRank ? 3 : 8), group.numel);
        ASSERT_EQ(group.parameters.size(), whole_group.parameters.size());
        for (size_t i = 0; i < group.parameters.size(); ++i) {
          const FlatParameter &p = group.parameters[i], &w = whole_group.parameters[i];
          const int64_t first = w.offset + p.global_first;
          expect_same_bits(part_weights[g].rows(p.offset, p.offset + p.local_numel),
                           weights[g].rows(first, first + p.local_numel), p.parameter.name.c_str());
        }
      }
    }
  }
}

bool is_matrix(const Parameter& p) { return p.shape.rank() > 1 && p.init != Init::kConv; }

// Every element has one place, no shard begins inside a matrix, and padding is bounded.
TEST(ParameterLayout, ShardsCanBeginBetweenMatrices) {
  ModelConfig c = small_config();
  c.hidden_size = 12;  // matrices whose sizes are no multiples of the alignment
  for (const int64_t expert_ranks : {1, 2, 4}) {
    for (const int64_t ranks : {expert_ranks, 3 * expert_ranks, 8 * expert_ranks}) {
      for (const int64_t bucket : {0, 1, 3000}) {
        SCOPED_TRACE(::testing::Message()
                     << ranks << " ranks, " << expert_ranks << " expert ranks, buckets " << bucket);
        const int64_t copies = ranks / expert_ranks;
        const ParameterLayout layout(c, {}, expert_ranks, expert_ranks - 1, ranks, copies, bucket, is_matrix);
        std::set<std::string> names;
        int64_t matrices = 0;
        for (const FlatGroup& group : layout.groups()) {
          EXPECT_TRUE(names.insert(group.name).second) << group.name << " appears twice";
          const int64_t shards = group.owner == Owner::kExpertRank ? copies : ranks;
          EXPECT_EQ(group.numel, shards * group.shard_numel);
          std::map<int64_t, int64_t> used;  // begin -> end
          int64_t largest = 0, all = 0;
          for (const FlatParameter& p : group.parameters) {
            EXPECT_EQ(p.offset % 128, 0) << p.parameter.name;
            EXPECT_TRUE(used.emplace(p.offset, p.offset + p.local_numel).second);
            all += p.local_numel;
            EXPECT_EQ(group.cut == Cut::kBetweenMatrices, is_matrix(p.parameter)) << p.parameter.name;
            if (!is_matrix(p.parameter)) continue;
            matrices += 1;
            const Shape& shape = p.parameter.shape;
            const int64_t matrix = shape[shape.rank() - 2] * shape[shape.rank() - 1];
            largest = std::max(largest, matrix);
            for (int64_t begin = p.offset; begin < p.offset + p.local_numel; begin += matrix)
              EXPECT_EQ(begin / group.shard_numel, (begin + matrix - 1) / group.shard_numel)
                  << p.parameter.name << " is cut";
          }
          int64_t end = 0;
          for (const auto& [first, last] : used) {
            EXPECT_LE(end, first) << "two parameters overlap in " << group.name;
            end = last;
          }
          EXPECT_LE(end, group.numel);
          if (group.cut == Cut::kBetweenMatrices && group.owner == Owner::kEveryRank) {
            const auto room = 128 * static_cast<int64_t>(group.parameters.size());
            EXPECT_LE(group.shard_numel, all / shards + largest + room);
          }
        }
        const auto table = parameter_table(c, {});
        EXPECT_EQ(matrices, std::count_if(table.begin(), table.end(), is_matrix));
      }
    }
  }
}

// Padding costs little while there are several matrices for each rank.
TEST(ParameterLayout, MatricesAreSpreadEvenly) {
  const MatrixFilter of_layers = [](const Parameter& p) { return is_matrix(p) && p.name.starts_with("model.layers."); };
  const ParameterLayout layout(ModelConfig{}, {}, 64, 0, 64, 1, 0, of_layers);  // the released model
  int64_t all = 0, with_padding = 0;
  for (const FlatGroup& group : layout.groups()) {
    if (group.name != "matrices") continue;
    with_padding += group.numel;
    for (const FlatParameter& p : group.parameters) all += p.local_numel;
  }
  EXPECT_GT(all, int64_t{1} << 30);
  EXPECT_LT(double(with_padding), 1.01 * double(all));
}

TEST(ParameterLayout, MatricesAreBf16BesideBf16AndTheRestIsFp32) {
  const ParameterLayout layout(small_config(), {}, 1, 0, 1, 1);
  std::map<std::string, DType> dtypes;
  for (const FlatGroup& group : layout.groups()) {
    EXPECT_EQ(group.weight_dtype(DType::kF64), DType::kF64);
    EXPECT_EQ(group.weight_dtype(DType::kF32), DType::kF32);
    for (const FlatParameter& p : group.parameters) {
      dtypes[p.parameter.name] = group.weight_dtype(DType::kBF16);
      EXPECT_EQ(p.offset * 2 % 256, 0) << p.parameter.name << " is not aligned";
    }
  }
  for (const char* name :
       {"model.norm.weight", "model.layers.0.linear_attn.A_log", "model.layers.0.linear_attn.dt_bias",
        "model.layers.0.linear_attn.conv1d.weight", "model.layers.0.linear_attn.norm.weight"})
    EXPECT_EQ(dtypes.at(name), DType::kF32) << name;
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight",
                           "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.linear_attn.out_proj.weight"})
    EXPECT_EQ(dtypes.at(name), DType::kBF16) << name;
}

// Any range of a parameter, in any dtype, is that range of the whole.
TEST(InitialWeights, RangesAndDtypesAgree) {
  const ModelConfig c = small_config();
  const InitialWeights source(c, {}, 3);
  for (const Parameter& p : parameter_table(c, {})) {
    Tensor whole = zeros({p.shape.numel()}, DType::kF32);
    source.read_weights(p, 0, p.shape.numel(), whole);
    const int64_t begin = p.shape.numel() / 3, end = p.shape.numel() - p.shape.numel() / 4;
    Tensor part = zeros({end - begin}, DType::kF32), half = zeros({end - begin}, DType::kBF16);
    Tensor rounded = zeros({end - begin}, DType::kBF16);
    source.read_weights(p, begin, end, part);
    source.read_weights(p, begin, end, half);
    convert(rounded, part);
    expect_same_bits(part, whole.rows(begin, end), p.name.c_str());
    expect_same_bits(half, rounded, p.name.c_str());
  }
}

TEST(InitialWeights, HaveTheSpreadOfTheirRule) {
  ModelConfig c = small_config();
  c.hidden_size = 64;
  c.moe_intermediate_size = c.shared_expert_intermediate_size = 32;
  for (const bool scaled : {true, false}) {
    InitConfig init;
    init.scale_output_projections = scaled;
    const InitialWeights source(c, init, 3);
    int64_t num_projections = 0;
    for (const Parameter& p : parameter_table(c, {})) {
      const bool is_projection = p.init == Init::kOutputProjection;
      if (!is_projection && p.init != Init::kNormal) continue;
      num_projections += is_projection;
      Tensor x = zeros_f64({p.shape.numel()});
      source.read_weights(p, 0, p.shape.numel(), x);
      const double expected = c.initializer_range / (is_projection && scaled ? std::sqrt(2.0 * 4) : 1);
      const double n = double(x.numel());
      EXPECT_NEAR(std::sqrt(dot(x, x) / n) / expected, 1, 5 / std::sqrt(2 * n)) << p.name;  // five standard deviations
    }
    EXPECT_GE(num_projections, 3 * c.num_hidden_layers) << "of the mixer, the experts and the shared expert";
  }
}

TEST(ParameterLayout, InitialValuesFollowTheTable) {
  const ModelConfig c = small_config();
  const ParameterLayout layout(c, {}, 1, 0, 1, 1);
  ModelParams params(c, {});
  layout.bind(params, initial_weights(c, layout, DType::kF64, 7));
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
