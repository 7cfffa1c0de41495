#include "model/layer_numbers.h"

#include <cmath>
#include <map>

#include "model/decoder_layer.h"
#include "tests/model/tiny_config.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

struct Slots {
  Tensor entropy, rms, mtp_rms, largest, mtp_entropy;
  Planner planner;
  Slots() {
    {
      Planner::Scope layer(planner, "layers.0.");
      Planner::Scope part(planner, "mlp.");
      planner.offer("moe/router_entropy", entropy, NumberKind::kTokenMean);
    }
    {
      Planner::Scope layer(planner, "layers.11.");
      planner.offer("hidden/rms", rms, NumberKind::kRootMeanSquare, 6);
      planner.offer("attention/logit_max", largest, NumberKind::kLargest);
    }
    Planner::Scope mtp(planner, "mtp.layers.0.");
    planner.offer("hidden/rms", mtp_rms, NumberKind::kRootMeanSquare, 3);
    planner.offer("moe/router_entropy", mtp_entropy, NumberKind::kTokenMean);
  }
};

// Two micro-batches; rank r's slot i holds (r + 1) (m + 1) (i + 1) in micro-batch m.
TEST(LayerNumbers, AreTakenOverMicroBatchesAndRanks) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  Slots s;
  LayerNumbers numbers({"hidden/rms", "attention/logit_max", "moe/router_entropy"});
  numbers.plan(s.planner);
  EXPECT_FALSE(s.entropy.defined()) << "has no memory yet";
  Arena arena("numbers", s.planner);
  std::vector<int64_t> tokens(13, 1);
  tokens[0] = 10;
  tokens[12] = 5;  // the MTP block's
  const double ranks = W * (W + 1) / 2.0, micro_batches = 1 + 2;
  for (int step = 0; step < 2; ++step) {
    numbers.begin_step();
    for (int m = 0; m < 2; ++m) {
      Tensor* slots[] = {&s.entropy, &s.rms, &s.largest, &s.mtp_rms, &s.mtp_entropy};
      for (int i = 0; i < 5; ++i) *slots[i]->data<double>() = (rank + 1) * (m + 1) * (i + 1);
      numbers.collect(ctx);
    }
    const std::vector<NamedNumber> result = numbers.end_step(ctx, world(), tokens);
    const std::vector<NamedNumber> expected = {
        {"moe/layer_00/router_entropy", ranks * micro_batches / 10},
        {"hidden/layer_11/rms", std::sqrt(2 * ranks * micro_batches / (6 * 2 * W))},
        {"attention/layer_11/logit_max", 3.0 * 2 * W},
        {"hidden/mtp/rms", std::sqrt(4 * ranks * micro_batches / (3 * 2 * W))},
        {"moe/mtp/router_entropy", 5 * ranks * micro_batches / 5}};
    ASSERT_EQ(result.size(), expected.size());
    for (size_t i = 0; i < result.size(); ++i) {
      EXPECT_EQ(result[i].name, expected[i].name);
      EXPECT_NEAR(result[i].value, expected[i].value, 1e-14 * expected[i].value) << result[i].name;
    }
  }
}

// A layer with attention: what it tells about two micro-batches, against what it saved of them.
TEST(LayerNumbers, EqualADirectComputation) {
  Context ctx = Context::cpu();
  const ModelConfig c = tiny_model_config();
  const auto alone = make_local_communicator();
  const int64_t B = 2, T = 9, N = B * T, C = c.hidden_size, E = c.num_experts;
  ExpertExchange exchange(*alone, E, c.num_experts_per_tok, N, 0);
  const DecoderLayer layer(c, LayerType::kFullAttention, exchange);
  DecoderLayerParams weights(LayerType::kFullAttention);
  weights.visit(c, [&](const std::string& name, Tensor& t, Shape shape, auto...) {
    t = random_f64(shape, std::hash<std::string>()(name), 0.3);
  });
  DecoderLayerSaved saved;
  Planner planner;
  {
    Planner::Scope scope(planner, "layers.0.");
    SavedPlan plan(planner, Recompute::kNone);
    layer.plan(plan, saved, B, N, DType::kF64);
  }
  LayerNumbers numbers(
      {"attention/first_token_share", "attention/logit_max", "hidden/max", "hidden/rms", "moe/router_entropy"});
  numbers.plan(planner);
  Arena arena("a layer", planner);
  numbers.begin_step();

  Segments segments = Segments::packed({4, 5, 9});
  segments.num_rows = B;
  segments.row_tokens = T;
  segments.valid[8] = 0;
  double largest = -1e300, squares = 0, entropy = 0, largest_x = 0, first_share = 0;
  for (uint64_t micro = 0; micro < 2; ++micro) {
    Tensor delta = zeros_f64({N, C});
    layer.forward(ctx, delta, random_f64({N, C}, 10 + micro, 2), weights, saved, {segments}).run();
    numbers.collect(ctx);
    squares += dot(saved.x, saved.x);
    for (int64_t i = 0; i < saved.x.numel(); ++i) largest_x = std::max(largest_x, std::abs(value_at(saved.x, i)));
    for (int64_t n = 0; n < N; ++n)
      for (int64_t e = 0; segments.valid[n] && e < E; ++e)
        entropy -= value_at(saved.moe.router.prob, n * E + e) * std::log(value_at(saved.moe.router.prob, n * E + e));
    const AttentionInputs& in = std::get<GatedAttentionSaved>(saved.mixer).inputs;  // q (N, 4, 6), k (N, 2, 6)
    for (int64_t document = 0; document < 3; ++document) {
      for (int64_t n = segments.begin(document); n < segments.end(document); ++n) {
        for (int64_t head = 0; head < 4; ++head) {
          double sum_exp = 0, exp_of_first = 0;
          for (int64_t j = segments.begin(document); j <= n; ++j) {
            double score = 0;
            for (int64_t d = 0; d < 6; ++d)
              score += value_at(in.q, (n * 4 + head) * 6 + d) * value_at(in.k, (j * 2 + head / 2) * 6 + d);
            largest = std::max(largest, score / std::sqrt(6.0));
            sum_exp += std::exp(score / std::sqrt(6.0));
            if (j == segments.begin(document)) exp_of_first = sum_exp;
          }
          if (segments.valid[n]) first_share += exp_of_first / sum_exp / 4;
        }
      }
    }
  }
  const auto result = numbers.end_step(ctx, *alone, {2 * (N - 1)});
  ASSERT_EQ(result.size(), 5u);
  const std::map<std::string, double> expected = {
      {"attention/layer_00/first_token_share", first_share / double(2 * (N - 1))},
      {"attention/layer_00/logit_max", largest},
      {"hidden/layer_00/max", largest_x},
      {"hidden/layer_00/rms", std::sqrt(squares / double(2 * N * C))},
      {"moe/layer_00/router_entropy", entropy / double(2 * (N - 1))}};
  for (const NamedNumber& number : result) {
    ASSERT_TRUE(expected.contains(number.name)) << number.name;
    EXPECT_NEAR(number.value, expected.at(number.name), 1e-12 * expected.at(number.name)) << number.name;
  }
}

TEST(LayerNumbers, WhatNobodyWantsIsLeftOut) {
  Slots s;
  LayerNumbers numbers({"moe/router_entropy"});
  numbers.plan(s.planner);
  Arena arena("numbers", s.planner);
  numbers.begin_step();
  EXPECT_TRUE(s.entropy.defined() && s.mtp_entropy.defined());
  EXPECT_FALSE(s.rms.defined() || s.mtp_rms.defined() || s.largest.defined());
  LayerNumbers none;
  Planner empty;
  none.plan(empty);
  EXPECT_EQ(empty.total_bytes(), 0);
  Context ctx = Context::cpu();
  none.collect(ctx);
  EXPECT_TRUE(none.end_step(ctx, world(), {}).empty());
}

TEST(LayerNumbers, NameWhatNoLayerHas) {
  Slots s;
  LayerNumbers numbers({"moe/router_entropy", "moe/magic"});
  EXPECT_EQ(
      message_of<ConfigError>([&] { numbers.plan(s.planner); }),
      "log.metrics: no layer of this model has a number called moe/magic; there are moe/router_entropy, hidden/rms, "
      "attention/logit_max");
}

}  // namespace
}  // namespace braid
