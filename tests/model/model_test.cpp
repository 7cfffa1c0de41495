#include "model/model.h"

#include "tests/model/tiny_model.h"

namespace braid {
namespace {

using namespace braid::testing;

BalanceConfig balance_with(BalanceScope scope, BalanceCounts counts) {
  BalanceConfig b;
  b.scope = scope;
  b.counts = counts;
  b.loss_weight = 0.5;
  b.z_loss_weight = 0.1;
  return b;
}

void set_previous_counts(TinyModel& t) {
  for (int64_t i = 0; i < t.balance.previous_counts().numel(); ++i)
    t.balance.previous_counts().data<int64_t>()[i] = 1 + 7 * i % 5;
}

// Total loss of one micro-batch as a function of the weights; f of the balance loss is held at the previous step's
// counts.
double total_loss(TinyModel& t, const Batch& batch, const TokenCounts& counts) {
  t.model.forward(t.ctx, batch);
  const LossSums sums = t.model.losses(t.ctx);
  const LossScales scales = t.scales(counts);
  double loss = scales.lm * sums.lm + scales.mtp * sums.mtp;
  const auto tokens = t.tokens_per_layer(counts);
  const auto routers = t.model.routers();
  const int64_t E = t.config.num_experts;
  for (int64_t layer = 0; layer < t.model.num_moe_layers(); ++layer) {
    const int64_t* previous = t.balance.previous_counts().data<int64_t>() + layer * E;
    double total = 0;
    for (int64_t e = 0; e < E; ++e) total += double(previous[e]);
    const RouterOutputs& r = *routers[layer];
    for (int64_t row = 0; row < r.counts.dim(0); ++row) {
      for (int64_t e = 0; e < E; ++e)
        loss += t.balance_config.loss_weight * double(E) * double(previous[e]) / total *
                r.prob_sum.data<double>()[row * E + e] / double(tokens[layer]);
      loss += t.balance_config.z_loss_weight * r.z_sum.data<double>()[row] / double(tokens[layer]);
    }
  }
  return loss;
}

void backward(TinyModel& t, const Batch& batch, const TokenCounts& counts,
              Accumulate expert_gradients = Accumulate::kYes) {
  t.model.forward(t.ctx, batch);
  t.balance.begin_step(t.ctx, t.tokens_per_layer(counts));
  t.balance.count(t.ctx, t.model.routers());
  t.balance.prepare_backward(t.ctx, t.balance_gradients, t.model.routers());
  t.model.losses_and_backward(t.ctx, t.scales(counts), t.balance_gradients, {}, expert_gradients);
}

// Every parameter tensor: central differences of a few of its elements in double.
TEST(ModelGradient, MatchesFiniteDifferencesForEveryParameter) {
  MtpConfig mtp;
  mtp.loss_weight = 0.3;
  TinyModel t(tiny_model_config(), mtp, balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep), 2, 10);
  set_previous_counts(t);
  const Batch batch = random_batch({{3, 5}, {7, 1}}, t.config.vocab_size, 3, /*padding=*/2);
  const TokenCounts counts = batch.counts;
  t.zero_gradients();
  backward(t, batch, counts);

  for (size_t group = 0; group < t.weights.size(); ++group) {
    Tensor weights = t.weights[group], gradients = t.gradients[group];
    for (const FlatParameter& p : t.layout.groups()[group].parameters) {
      double error = 0, norm = 0;
      const int64_t samples = std::min<int64_t>(p.local_numel, 12);
      for (int64_t s = 0; s < samples; ++s) {
        const int64_t i = p.offset + s * p.local_numel / samples;
        double& w = weights.data<double>()[i];
        const double original = w, step = 2e-5;
        auto at = [&](double offset) {
          w = original + offset;
          const double loss = total_loss(t, batch, counts);
          w = original;
          return loss;
        };
        const double numeric = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
        const double d = gradients.data<double>()[i] - numeric;
        error += d * d;
        norm += numeric * numeric;
      }
      EXPECT_LE(std::sqrt(error), 1e-7 * std::sqrt(norm) + 1e-10) << p.parameter.name;
    }
  }
}

// The same documents packed into one row, or each in a row of its own: the same losses and gradients.
TEST(Model, PackedDocumentsEqualSeparateOnes) {
  const BalanceConfig b = balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep);
  const std::vector<int64_t> lengths = {5, 1, 70, 4};
  ModelConfig config = tiny_model_config();
  config.max_position_embeddings = 128;
  TinyModel packed(config, {}, b, 1, 80);
  set_previous_counts(packed);
  const Batch batch = random_batch({lengths}, config.vocab_size, 9);
  const TokenCounts counts = batch.counts;
  packed.zero_gradients();
  backward(packed, batch, counts);
  const double packed_loss = total_loss(packed, batch, counts);

  std::vector<Tensor> sums;
  for (const Tensor& g : packed.gradients) sums.push_back(zeros_f64(g.shape()));
  double separate_loss = 0;
  int64_t begin = 0;
  for (int64_t length : lengths) {
    Batch one;
    one.num_rows = 1;
    one.row_tokens = length;
    one.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + begin + length);
    one.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + begin + length);
    one.segments = Segments::whole_rows(1, length);
    one.complete();
    begin += length;
    TinyModel single(config, {}, b, 1, length);
    set_previous_counts(single);
    single.zero_gradients();
    backward(single, one, counts);
    separate_loss += total_loss(single, one, counts);
    for (size_t g = 0; g < sums.size(); ++g)
      for (int64_t i = 0; i < sums[g].numel(); ++i) sums[g].data<double>()[i] += single.gradients[g].data<double>()[i];
  }
  EXPECT_NEAR(packed_loss, separate_loss, 1e-12 * packed_loss);
  for (size_t g = 0; g < sums.size(); ++g)
    expect_close(packed.gradients[g], sums[g], 1e-12, packed.layout.groups()[g].name.c_str());
}

// The first micro-batch of a step writes the gradients of the experts, the others add to them.
TEST(ModelGradient, OfExpertsNeedNotBeZeroBefore) {
  TinyModel added(tiny_model_config(), {}, balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep), 2,
                  10),
      written(tiny_model_config(), {}, balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep), 2, 10);
  const Batch batch = random_batch({{3, 5}, {7, 1}}, added.config.vocab_size, 3, /*padding=*/2);
  for (auto* t : {&added, &written}) {
    set_previous_counts(*t);
    t->zero_gradients();
  }
  for (size_t group = 0; group < written.gradients.size(); ++group)
    for (const FlatParameter& p : written.layout.groups()[group].parameters)
      if (p.parameter.owner == Owner::kExpertRank)
        std::fill_n(written.gradients[group].data<double>() + p.offset, p.local_numel, NAN);
  for (Accumulate experts : {Accumulate::kNo, Accumulate::kYes}) {  // two micro-batches
    backward(added, batch, batch.counts);
    backward(written, batch, batch.counts, experts);
    for (size_t group = 0; group < written.gradients.size(); ++group)
      expect_same_bits(written.gradients[group], added.gradients[group], written.layout.groups()[group].name.c_str());
  }
}

// What backward makes again has the bits of what it would have found, and takes less memory the more of it there is.
TEST(ModelGradient, HasTheSameBitsWhateverIsMadeAgain) {
  const BalanceConfig b = balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep);
  const Batch batch = random_batch({{3, 5}, {7, 1}}, tiny_model_config().vocab_size, 3, /*padding=*/2);
  TinyModel kept(tiny_model_config(), {}, b, 2, 10);
  int64_t bytes = kept.memory.bytes();
  set_previous_counts(kept);
  kept.zero_gradients();
  for (int micro = 0; micro < 2; ++micro) backward(kept, batch, batch.counts);
  const std::vector<Recomputation> all = {{Recompute::kNone, 1}, Recompute::kElementwise, {Recompute::kElementwise, 1},
                                          Recompute::kMoe,       {Recompute::kMoe, 1},    Recompute::kLayer};
  for (const Recomputation& recompute : all) {
    const std::string name = to_text(recompute, 2);
    TinyModel again(tiny_model_config(), {}, b, 2, 10, 5, recompute);
    EXPECT_LE(again.memory.bytes(), bytes) << name;
    if (recompute.further == 0) {
      EXPECT_LT(again.memory.bytes(), bytes) << name;
      bytes = again.memory.bytes();
    }
    set_previous_counts(again);
    again.zero_gradients();
    for (int micro = 0; micro < 2; ++micro) backward(again, batch, batch.counts);
    for (size_t group = 0; group < kept.gradients.size(); ++group)
      expect_same_bits(again.gradients[group], kept.gradients[group], name.c_str());
    // A second backward without a forward finds memory of other layers: nothing of it may be read.
    kept.zero_gradients(), again.zero_gradients();
    for (auto* t : {&kept, &again}) t->model.losses_and_backward(t->ctx, t->scales(batch.counts), t->balance_gradients);
    for (size_t group = 0; group < kept.gradients.size(); ++group)
      expect_same_bits(again.gradients[group], kept.gradients[group], name.c_str());
    kept.zero_gradients();
    for (int micro = 0; micro < 2; ++micro) backward(kept, batch, batch.counts);
  }
}

// Layers go further one by one, those of Gated DeltaNet before those of attention, and the MTP block last.
TEST(Recomputation, LayersOfGatedDeltaNetGoFurtherFirst) {
  ModelConfig c = tiny_model_config();
  c.num_hidden_layers = 4;
  c.layer_types = {LayerType::kFullAttention, LayerType::kLinearAttention, LayerType::kFullAttention,
                   LayerType::kLinearAttention};
  const MtpConfig mtp{.depth = 1};
  const Recompute moe = Recompute::kMoe, layer = Recompute::kLayer;
  using Layers = std::vector<Recompute>;
  EXPECT_EQ(recompute_of_layers(c, mtp, moe), (Layers{moe, moe, moe, moe, moe}));
  EXPECT_EQ(recompute_of_layers(c, mtp, {moe, 1}), (Layers{moe, layer, moe, moe, moe}));
  EXPECT_EQ(recompute_of_layers(c, mtp, {moe, 3}), (Layers{layer, layer, moe, layer, moe}));
  EXPECT_EQ(recompute_of_layers(c, mtp, {moe, 4}), (Layers{layer, layer, layer, layer, moe}));
  EXPECT_EQ(recompute_of_layers(c, mtp, {moe, 5}), recompute_of_layers(c, mtp, layer));
  EXPECT_EQ(to_text({moe, 3}, 5), "moe, layer in 3 of 5 layers");
  EXPECT_EQ(to_text(layer, 5), "layer");
}

// Nothing about padding may reach a loss, a gradient or a count.
TEST(Model, PaddingChangesNothing) {
  const BalanceConfig b = balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep);
  const ModelConfig config = tiny_model_config();
  const Batch plain = random_batch({{6, 3}}, config.vocab_size, 4),
              padded = random_batch({{6, 3}}, config.vocab_size, 4, 5);
  const TokenCounts counts = plain.counts;
  EXPECT_EQ(padded.counts.tokens, counts.tokens);
  TinyModel a(config, {}, b, 1, 9), c(config, {}, b, 1, 14);
  for (auto* t : {&a, &c}) {
    set_previous_counts(*t);
    t->zero_gradients();
    backward(*t, t == &a ? plain : padded, counts);
  }
  EXPECT_NEAR(total_loss(a, plain, counts), total_loss(c, padded, counts), 1e-13);
  for (size_t g = 0; g < a.gradients.size(); ++g) expect_close(c.gradients[g], a.gradients[g], 1e-12);
}

// The MTP block's gradients reach the trunk, and switching it off removes its parameters and nothing else.
TEST(Model, MtpIsPartOfTheTrunkLossOnlyWhenOn) {
  const BalanceConfig b = balance_with(BalanceScope::kGlobalBatch, BalanceCounts::kPreviousStep);
  MtpConfig off;
  off.loss_weight = 0;
  const ModelConfig config = tiny_model_config();
  EXPECT_LT(parameter_table(config, off).size(), parameter_table(config, MtpConfig{}).size());
  TinyModel with(config, {}, b, 1, 8), without(config, off, b, 1, 8);
  const Batch batch = random_batch({{8}}, config.vocab_size, 2);
  const TokenCounts counts = batch.counts;
  for (auto* t : {&with, &without}) {
    t->zero_gradients();
    backward(*t, batch, counts);
  }
  Tensor trunk = with.model.gradients().layers[0].input_norm, alone = without.model.gradients().layers[0].input_norm;
  EXPECT_GT(relative_rms(trunk, alone), 1e-3);
  expect_same_bits(with.model.hidden(), without.model.hidden());
}

// Position t of the MTP block sees token t + 1 and no later one.
TEST(Model, MtpSeesTheNextTokenAndNoLaterOne) {
  TinyModel t(tiny_model_config(), {}, {}, 1, 8);
  Batch batch = random_batch({{8}}, t.config.vocab_size, 2);
  auto mtp_row = [&](int64_t position) {
    batch.complete();
    t.model.forward(t.ctx, batch);
    return copy_of(t.model.mtp_hidden().rows(position, position + 1));
  };
  const Tensor before = mtp_row(3);
  batch.tokens[5] = (batch.tokens[5] + 1) % t.config.vocab_size;
  // To rounding: another token takes other experts, and BLAS may add up the rows of an expert otherwise for another
  // count.
  expect_close(mtp_row(3), before, 1e-14, "token t + 2 must not be seen");
  batch.tokens[4] = (batch.tokens[4] + 1) % t.config.vocab_size;
  EXPECT_GT(relative_rms(mtp_row(3), before), 1e-3) << "token t + 1 must be seen";
}

TEST(Model, IsCausal) {
  TinyModel t(tiny_model_config(), {}, {}, 1, 8);
  Batch batch = random_batch({{8}}, t.config.vocab_size, 2);
  auto rows = [&] {
    batch.complete();
    t.model.forward(t.ctx, batch);
    return copy_of(t.model.hidden().rows(0, 5));
  };
  const Tensor before = rows();
  batch.tokens[5] = (batch.tokens[5] + 1) % t.config.vocab_size;
  expect_close(rows(), before, 1e-14);
}

}  // namespace
}  // namespace braid
