#include "trainer/optimizer/optimizer.h"

#include <algorithm>
#include <map>

#include "kernels/adamw.h"
#include "kernels/core/copy.h"
#include "kernels/random.h"
#include "model/initial_weights.h"
#include "tests/kernels/muon_reference.h"
#include "tests/model/tiny_model.h"
#include "tests/testing.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(MuonRule, TakesTheHiddenMatricesOfTheReleasedModel) {
  std::map<std::string, bool> takes;
  for (const Parameter& p : parameter_table(ModelConfig{}, MtpConfig{})) takes[p.name] = MuonRule::takes(p);
  const std::string gdn = "model.layers.0.linear_attn.", full = "model.layers.3.self_attn.",
                    moe = "model.layers.0.mlp.";
  for (const std::string& name :
       {gdn + "in_proj_qkvz.weight", gdn + "in_proj_ba.weight", gdn + "out_proj.weight", full + "q_proj.weight",
        full + "k_proj.weight", full + "v_proj.weight", full + "o_proj.weight", moe + "gate.weight",
        moe + "experts.gate_up_proj", moe + "experts.down_proj", moe + "shared_expert.gate_proj.weight",
        moe + "shared_expert.up_proj.weight", moe + "shared_expert.down_proj.weight", std::string("mtp.fc.weight")})
    EXPECT_TRUE(takes.at(name)) << name;
  for (const std::string& name :
       {std::string("model.embed_tokens.weight"), std::string("lm_head.weight"), std::string("model.norm.weight"),
        gdn + "conv1d.weight", gdn + "A_log", gdn + "dt_bias", gdn + "norm.weight", full + "q_norm.weight",
        moe + "shared_expert_gate.weight", std::string("mtp.norm.weight"),
        std::string("mtp.pre_fc_norm_hidden.weight")})
    EXPECT_FALSE(takes.at(name)) << name;
}

TEST(MuonRule, ThePackedRowsAreThoseOfTheOperators) {
  const ModelConfig c = tiny_model_config();
  const GdnDims d = c.gdn();
  std::map<std::string, PackedRows> packed;
  for (const Parameter& p : parameter_table(c, MtpConfig{})) {
    packed[p.name] = p.packed;
    if (p.packed.sections.empty()) continue;
    int64_t rows = 0;
    for (int64_t section : p.packed.sections) rows += p.packed.groups * section;
    EXPECT_EQ(rows, p.shape[p.shape.rank() - 2]) << p.name;
  }
  // The row where a section of a group begins.
  auto row = [&](const std::string& name, int64_t group, size_t section) {
    const PackedRows& rows = packed.at(name);
    int64_t period = 0, before = 0;
    for (size_t i = 0; i < rows.sections.size(); ++i) {
      period += rows.sections[i];
      if (i < section) before += rows.sections[i];
    }
    return group * period + before;
  };
  const std::string qkvz = "model.layers.0.linear_attn.in_proj_qkvz.weight";
  const std::string ba = "model.layers.0.linear_attn.in_proj_ba.weight";
  for (int64_t head = 0; head < d.key_heads; ++head) {
    EXPECT_EQ(row(qkvz, head, 0), d.q_column(head));
    EXPECT_EQ(row(qkvz, head, 1), d.k_column(head));
    EXPECT_EQ(row(qkvz, head, 2), d.v_column(head * d.group()));
    EXPECT_EQ(row(qkvz, head, 3), d.z_column(head * d.group()));
    EXPECT_EQ(row(ba, head, 0), d.b_column(head * d.group()));
    EXPECT_EQ(row(ba, head, 1), d.a_column(head * d.group()));
  }
  EXPECT_EQ(packed.at("model.layers.1.self_attn.q_proj.weight").groups, c.num_attention_heads);
  EXPECT_EQ(packed.at("model.layers.0.mlp.experts.gate_up_proj").sections,
            (std::vector<int64_t>{c.moe_intermediate_size, c.moe_intermediate_size}));
}

// Rows of a matrix that belong to one linear map.
struct Map {
  int64_t first;  // element of the whole tensor
  std::vector<int64_t> rows;
};
std::vector<Map> maps_of(const Parameter& p) {
  const int64_t P = p.shape[p.shape.rank() - 2], C = p.shape[p.shape.rank() - 1];
  std::vector<int64_t> sections = p.packed.sections.empty() ? std::vector<int64_t>{P} : p.packed.sections;
  std::vector<Map> maps;
  for (int64_t matrix = 0; matrix < p.shape.numel() / (P * C); ++matrix) {
    std::vector<Map> of_matrix(sections.size(), {matrix * P * C, {}});
    for (int64_t row = 0; row < P;)
      for (size_t s = 0; s < sections.size(); ++s)
        for (int64_t i = 0; i < sections[s]; ++i) of_matrix[s].rows.push_back(row++);
    maps.insert(maps.end(), of_matrix.begin(), of_matrix.end());
  }
  return maps;
}

// Three updates of a whole model: every linear map as the reference has it, everything else as AdamW has it.
TEST(Optimizer, MuonUpdatesEveryLinearMapAndAdamWTheRest) {
  RunConfig config;
  config.model = tiny_model_config();
  config.precision = Precision::kFp64;
  config.train.seq_length = 8;
  config.optimizer.kind = OptimizerKind::kMuon;
  config.optimizer.muon_momentum = 0.9;
  config.optimizer.muon_update_rms = 0.3;
  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  Context ctx = Context::cpu();
  TrainingState state(config, mesh);
  state.allocate(ctx);
  state.initialize(ctx);

  struct Expected {
    Tensor weight, first, second;  // moments; first: Muon's momentum
  };
  std::map<std::string, Expected> expected;
  for (const CheckpointSlice& slice : state.parameters.slices())
    expected[slice.name.substr(8)] = {copy_of(slice.data), zeros_f64(slice.data.shape()),
                                      zeros_f64(slice.data.shape())};
  std::map<std::string, Parameter> table;
  for (const Parameter& p : parameter_table(config.model, config.mtp)) table[p.name] = p;
  ASSERT_EQ(expected.size(), table.size());

  for (int64_t step = 1; step <= 3; ++step) {
    state.parameters.zero_gradients(ctx);
    state.model.gradients().visit(config.model, [&](const std::string& name, Tensor& gradient, const Shape&,
                                                    const auto&...) {
      const Parameter& p = table.at(name);
      fill_normal(ctx, gradient, 0, 1e-3, 77, std::hash<std::string>{}(name), step);
      Expected& e = expected.at(name);
      const double decay = weight_decay_of(p, config.optimizer), lr = 1e-2 / double(step), scale = 0.7;
      if (!MuonRule::takes(p)) {
        adamw_update(ctx, {e.weight, e.first, e.second}, gradient.view(e.weight.shape()),
                     {lr, config.optimizer.beta1, config.optimizer.beta2, config.optimizer.eps, decay, scale, step});
        return;
      }
      const int64_t C = p.shape[p.shape.rank() - 1];
      for (const Map& map : maps_of(p)) {
        auto read = [&](const Tensor& t) {
          Matrix m;
          for (int64_t row : map.rows) {
            const double* from = t.data<double>() + map.first + row * C;
            m.emplace_back(from, from + C);
          }
          return m;
        };
        auto write = [&](Tensor& t, const Matrix& m) {
          for (size_t i = 0; i < m.size(); ++i)
            std::copy(m[i].begin(), m[i].end(), t.data<double>() + map.first + map.rows[i] * C);
        };
        Matrix momentum = read(e.first);
        write(e.weight, MuonReference{lr, 0.9, 0.3, decay, scale}.update(read(e.weight), momentum, read(gradient)));
        write(e.first, momentum);
      }
    });
    state.parameters.reduce_gradients(ctx);
    state.optimizer.update(ctx, {1e-2 / double(step), 0.7, step});
  }
  for (const CheckpointSlice& slice : state.parameters.slices())
    expect_close(slice.data, expected.at(slice.name.substr(8)).weight, 1e-12, slice.name.c_str());
  int64_t momenta = 0;
  for (const CheckpointSlice& slice : state.optimizer.slices()) {
    if (!slice.name.starts_with("momentum/")) continue;
    momenta += 1;
    expect_close(slice.data, expected.at(slice.name.substr(9)).first, 1e-13, slice.name.c_str());
  }
  EXPECT_EQ(momenta,
            std::count_if(table.begin(), table.end(), [](const auto& p) { return MuonRule::takes(p.second); }));
}

// A model's weights, gradients and optimizer state; the state in place, or this share of it in host memory, from where
// it passes through windows of so many elements.
struct Updated {
  static constexpr int64_t kInPlace = 0;
  Context& ctx;
  ModelConfig model = tiny_model_config();
  ProcessMesh mesh;
  ShardedParameters parameters;
  Optimizer optimizer;
  ModelParams weights{model, {}}, gradients{model, {}};
  Arena arena, kept, away, windows;
  PinnedMemory pinned;

  Updated(Context& context, const OptimizerConfig& config, DType activation, int64_t slice_elements, double share = 1,
          std::unique_ptr<Communicator> world = make_local_communicator())
      : ctx(context),
        mesh(std::move(world), 1, model.num_experts),
        parameters(ParameterLayout(model, {}, mesh, 1000), mesh, activation),
        optimizer(config, parameters, StateStream(slice_elements)) {
    Planner plan, kept_plan, away_plan, windows_plan;
    const StatePlan state(kept_plan, away_plan, parameters.leading_groups(slice_elements == kInPlace ? 1 : 1 - share));
    parameters.plan(plan, plan, state);
    optimizer.plan(state);
    optimizer.plan_windows(windows_plan);
    arena = Arena("parameters", plan, ctx.device());
    parameters.bind(weights, gradients);
    kept = Arena("state", kept_plan, ctx.device());
    away = Arena("offloaded state", away_plan, Device::kCpu);
    if (slice_elements != kInPlace) windows = Arena("windows", windows_plan, ctx.device());
    if (away.bytes() > 0 && ctx.on_cuda()) pinned = PinnedMemory(away_plan.entries().front().slot->raw(), away.bytes());
    parameters.load(ctx, InitialWeights(model, {}, 5));
  }

  void step(int64_t number) {
    for (const int64_t layer : {-1, 0, 1}) optimizer.wait_for_layer(ctx, layer);
    optimizer.wait_for_update(ctx);
    parameters.zero_gradients(ctx);
    gradients.visit(model, [&](const std::string& name, Tensor& gradient, const Shape&, const auto&...) {
      fill_normal(ctx, gradient, 0, 1e-3, 77, std::hash<std::string>{}(name), static_cast<uint64_t>(number));
    });
    parameters.reduce_gradients(ctx);
    optimizer.update(ctx, {1e-2, 0.7, number});
  }
  // Weights, low bits and moments, byte for byte.
  std::vector<std::vector<char>> results() {
    optimizer.settle(ctx);
    std::vector<std::vector<char>> results;
    const auto add = [&](const Tensor& t) {
      results.emplace_back(static_cast<size_t>(t.defined() ? t.bytes() : 0));
      if (t.defined()) copy(ctx, Tensor(results.back().data(), t.dtype(), t.shape()), t);
    };
    for (size_t i = 0; i < parameters.num_groups(); ++i) add(parameters.shard(i).weights), add(parameters.shard(i).low);
    for (const CheckpointSlice& slice : optimizer.slices()) add(slice.data);
    return results;
  }
};

// Slices end inside parameters, groups inside a slice.
void expect_same_bits_through_windows(Context& ctx) {
  for (const DType activation : {DType::kF32, DType::kBF16}) {
    for (const MomentDType moments : {MomentDType::kFp32, MomentDType::kInt8}) {
      SCOPED_TRACE(concat(name_of(activation), ' ', name_of_enum(moments)));
      OptimizerConfig config;
      config.moment_dtype = moments;
      Updated in_place(ctx, config, activation, Updated::kInPlace);
      for (int64_t number = 1; number <= 3; ++number) in_place.step(number);
      const auto expected = in_place.results();
      const auto is_moved = [](const auto& bytes) {
        return std::any_of(bytes.begin(), bytes.end(), [](char byte) { return byte != 0; });
      };
      EXPECT_GT(std::count_if(expected.begin(), expected.end(), is_moved), std::ssize(expected) / 2);
      for (const double share : {1.0, 0.4}) {
        SCOPED_TRACE(share);
        Updated in_windows(ctx, config, activation, 384, share);
        EXPECT_EQ(in_windows.kept.bytes() > 0, share < 1);
        EXPECT_GE(double(in_windows.away.bytes()), 0.9 * share * double(in_place.kept.bytes()));
        for (int64_t number = 1; number <= 3; ++number) in_windows.step(number);
        const auto got = in_windows.results();
        ASSERT_EQ(got.size(), expected.size());
        for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(got[i] == expected[i]) << i;
      }
    }
  }
}

TEST(Optimizer, StateThatPassesThroughWindowsGetsTheSameBits) {
  Context ctx = Context::cpu();
  expect_same_bits_through_windows(ctx);
}

TEST(Optimizer, AndSoItDoesOnAGpu) {
  if (Context::num_gpus() == 0) GTEST_SKIP() << Context::why_no_gpu();
  Context ctx = Context::gpu(0);
  expect_same_bits_through_windows(ctx);
}

// Inputs of the next step are copied first, and each layer's forward is enqueued before what later ones wait for.
TEST(Optimizer, AnUpdateThroughWindowsIsEnqueuedByTheWaits) {
  Context ctx = Context::cpu();
  Updated updated(ctx, {}, DType::kF32, 384);
  const auto weights_of = [&](size_t group) {
    const Tensor weights = updated.parameters.shard(group).weights;
    return std::vector<float>(weights.data<float>(), weights.data<float>() + weights.numel());
  };
  const int64_t num_layers = updated.model.num_hidden_layers;
  const size_t first = 0;
  size_t last = 0;  // of those that begin behind layer 0, whose update is enqueued beside the embedding's
  for (size_t i = 0; i < updated.parameters.num_groups(); ++i)
    if (updated.parameters.group(i).complete_after > 0) last = i;
  ASSERT_GT(last, first);
  const std::vector<float> first_before = weights_of(first), last_before = weights_of(last);
  updated.step(1);
  EXPECT_EQ(weights_of(first), first_before);
  updated.optimizer.wait_for_layer(ctx, -1);
  const std::vector<float> first_after = weights_of(first);
  EXPECT_NE(first_after, first_before);
  EXPECT_EQ(weights_of(last), last_before);
  for (int64_t layer = 0; layer <= num_layers; ++layer) updated.optimizer.wait_for_layer(ctx, layer);
  const std::vector<float> last_after = weights_of(last);
  EXPECT_NE(last_after, last_before);
  updated.optimizer.settle(ctx);
  EXPECT_EQ(weights_of(first), first_after) << "it runs once";
  EXPECT_EQ(weights_of(last), last_after);
}

// Ranks whose gathering takes long and leaves zeros.
class SlowlyGatheredZeros final : public Communicator {
 public:
  int rank() const override { return one_->rank(); }
  int size() const override { return one_->size(); }
  void all_gather(Context& ctx, Tensor full, const Tensor&) override {
    Scratch scratch(ctx);
    const Tensor large = scratch.tensor({int64_t{1} << 24}, DType::kF32);
    for (int turn = 0; turn < (ctx.on_cuda() ? 200 : 1); ++turn) fill_zero(ctx, large);
    fill_zero(ctx, full);
  }
  void all_reduce(Context& ctx, Tensor in_out, ReduceOp op) override { one_->all_reduce(ctx, in_out, op); }
  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    one_->reduce_scatter(ctx, shard, full, op);
  }
  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    one_->all_to_all_rows(ctx, recv, recv_rows, send, send_rows);
  }
  void broadcast(Context& ctx, Tensor in_out, int root) override { one_->broadcast(ctx, in_out, root); }
  void barrier(Context& ctx) override { one_->barrier(ctx); }
  std::unique_ptr<Communicator> split(int) override { return std::make_unique<SlowlyGatheredZeros>(); }

 private:
  std::unique_ptr<Communicator> one_ = make_local_communicator();
};

// On a GPU the ranks gather beside what comes behind an update.
void expect_whole_weights_behind_the_waits(Context& ctx) {
  Updated updated(ctx, {}, DType::kF32, Updated::kInPlace, 1, std::make_unique<SlowlyGatheredZeros>());
  const int64_t num_layers = updated.model.num_hidden_layers;
  const auto is_whole = [&](const FlatGroup& group, size_t i) {
    std::vector<float> weights(static_cast<size_t>(group.shard_numel));
    copy(ctx, Tensor::of(weights.data(), {group.shard_numel}), updated.parameters.shard(i).weights);
    return std::all_of(weights.begin(), weights.end(), [](float weight) { return weight == 0; });
  };
  updated.step(1);  // from zeros, too, as loading gathers
  for (int64_t layer = -1; layer <= num_layers; ++layer) {
    updated.optimizer.wait_for_layer(ctx, layer);
    for (size_t i = 0; i < updated.parameters.num_groups(); ++i) {
      const FlatGroup& group = updated.parameters.group(i);
      if (group.complete_after == layer) {
        EXPECT_TRUE(is_whole(group, i)) << group.name;
      }
    }
  }
  updated.step(2);
  updated.optimizer.wait_for_update(ctx);
  for (size_t i = 0; i < updated.parameters.num_groups(); ++i)
    EXPECT_TRUE(is_whole(updated.parameters.group(i), i)) << updated.parameters.group(i).name;
}

TEST(Optimizer, WeightsAreWholeBehindTheWaits) {
  Context ctx = Context::cpu();
  expect_whole_weights_behind_the_waits(ctx);
}

TEST(Optimizer, AndSoTheyAreOnAGpu) {
  if (Context::num_gpus() == 0) GTEST_SKIP() << Context::why_no_gpu();
  Context ctx = Context::gpu(0);
  expect_whole_weights_behind_the_waits(ctx);
}

}  // namespace
}  // namespace braid
