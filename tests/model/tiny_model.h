#pragma once

#include <memory>

#include "kernels/core/batch.h"
#include "kernels/core/copy.h"
#include "model/initial_weights.h"
#include "model/model.h"
#include "tests/model/tiny_config.h"
#include "tests/testing.h"
#include "trainer/train_step.h"

namespace braid::testing {

// A complete batch of random tokens. Each row packs documents of the given lengths; the last token of each has no
// target. Tokens marked as padding are their own document and not valid.
inline Batch random_batch(const std::vector<std::vector<int64_t>>& documents, int64_t vocab, uint64_t seed,
                          int64_t padding = 0) {
  Batch batch;
  batch.segments.offsets = {0};
  int64_t position = 0;
  auto token_at = [&](int64_t i) { return int64_t(philox(seed, 0, uint64_t(i))[0] % uint64_t(vocab)); };
  for (const auto& row : documents) {
    int64_t row_tokens = padding;
    for (int64_t length : row) {
      for (int64_t i = 0; i < length; ++i, ++position) {
        batch.tokens.push_back(token_at(position));
        batch.targets.push_back(i + 1 < length ? token_at(position + 1) : -1);
        batch.segments.valid.push_back(1);
      }
      batch.segments.offsets.push_back(static_cast<int64_t>(batch.tokens.size()));
      row_tokens += length;
    }
    if (padding > 0) {
      batch.tokens.insert(batch.tokens.end(), padding, 0);
      batch.targets.insert(batch.targets.end(), padding, -1);
      batch.segments.valid.insert(batch.segments.valid.end(), padding, 0);
      batch.segments.offsets.push_back(static_cast<int64_t>(batch.tokens.size()));
    }
    batch.row_tokens = row_tokens;
    batch.num_rows += 1;
  }
  batch.segments.num_rows = batch.num_rows;
  batch.segments.row_tokens = batch.row_tokens;
  batch.complete();
  return batch;
}

// A model in fp64 on one rank with its memory, weights away from their initial values.
struct TinyModel {
  std::unique_ptr<Communicator> world = make_local_communicator();
  ModelConfig config;
  MtpConfig mtp;
  BalanceConfig balance_config;
  ParameterLayout layout;
  Model model;
  BalanceLoss balance;
  BalanceGradients balance_gradients;
  std::vector<Tensor> weights, gradients;  // per group of the layout
  Arena memory;
  Context ctx = Context::cpu();

  TinyModel(const ModelConfig& c, const MtpConfig& mtp_config, const BalanceConfig& b, int64_t num_rows,
            int64_t row_tokens, uint64_t seed = 5, const Recomputation& recompute = {})
      : config(c),
        mtp(mtp_config),
        balance_config(b),
        layout(c, mtp, 1, 0, 1, 1),
        model(c, mtp, {num_rows, row_tokens}, DType::kF64, *world, 0, recompute),
        balance(b, model.num_moe_layers(), c.num_experts, *world) {
    Planner plan;
    layout.plan_weights(plan, weights, DType::kF64);
    layout.plan_gradients(plan, gradients, DType::kF64);
    model.plan_activations(plan);
    balance.plan(plan);
    balance.plan_gradients(plan, balance_gradients, num_rows);
    memory = Arena("tiny model", plan);
    layout.bind(model.weights(), weights);
    layout.bind(model.gradients(), gradients);
    InitConfig init;
    init.equal_norm_router_rows = false;
    load_weights(ctx, InitialWeights(c, init, seed), layout, weights);
    for (size_t i = 0; i < weights.size(); ++i) {
      for (const FlatParameter& p :
           layout.groups()[i].parameters) {  // norms, gates and biases off their special values
        if (p.parameter.shape.rank() != 1) continue;
        for (int64_t k = 0; k < p.local_numel; ++k)
          weights[i].data<double>()[p.offset + k] += 0.3 * std::sin(double(p.offset + k));
      }
    }
  }

  void zero_gradients() {
    for (Tensor& gradient : gradients) fill_zero(ctx, gradient);
  }
  std::vector<int64_t> tokens_per_layer(const TokenCounts& counts) const {
    std::vector<int64_t> tokens(model.num_moe_layers(), counts.tokens);
    if (model.has_mtp()) tokens.back() = counts.mtp_tokens;
    return tokens;
  }
  LossScales scales(const TokenCounts& counts) const {
    return {1.0 / double(counts.lm_targets), counts.mtp_targets ? mtp.loss_weight / double(counts.mtp_targets) : 0};
  }
};

}  // namespace braid::testing
