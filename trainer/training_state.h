#pragma once

#include <functional>

#include "kernels/core/arena.h"
#include "model/model.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/config/config.h"
#include "trainer/optimizer/optimizer.h"
#include "trainer/step_memory.h"

namespace braid {

// Bytes of this rank, by what they are for.
struct MemoryPlan {
  Planner weights, gradients, optimizer, activations;
  // With memory.offload: optimizer state in host memory, and on a GPU what it passes through.
  Planner offloaded, windows;
  // Of the device.
  int64_t optimizer_bytes(Device device) const {
    return optimizer.total_bytes() + (device == Device::kCuda ? windows : offloaded).total_bytes();
  }
};

// Everything that a step changes or fills: model, parameters, optimizer, balance counts, and the memory behind them.
// Constructing it only plans; allocate() takes the memory, one block per purpose.
class TrainingState {
 public:
  TrainingState(const RunConfig& config, const ProcessMesh& mesh);
  TrainingState(const TrainingState&) = delete;
  TrainingState& operator=(const TrainingState&) = delete;

  const MemoryPlan& memory() const { return plan_; }
  // What all of it takes of the rank's device, once allocated.
  const MemoryEstimate& needs() const { return needs_; }
  // With the scratch of a step, and on a GPU only if everything fits what is free.   Errors: OutOfMemoryError, there
  // with the table of what is needed.
  void allocate(Context& ctx);
  void bind();  // of it: weights and gradients to the models

  void initialize(Context& ctx);  // weights from the seed, moments and counts 0
  // Everything, from any layout; every rank reads what it is to keep, then they gather the weights. `reader` was opened
  // by them together, here and below.   Errors: CheckpointError, on every rank.
  void load(Context& ctx, const CheckpointReader& reader);
  // The weights alone, in any floating-point dtype; the rest starts at 0.   Errors: CheckpointError if one is missing
  // or has another shape.
  void load_weights(Context& ctx, const WeightSource& source);
  std::vector<CheckpointSlice> slices(CheckpointContents contents = CheckpointContents::kAll);  // what this rank stores
  // Returns when an update that runs beside ctx has left in weights and slices what it leaves. Forward and train_step
  // wait by themselves.
  void settle(Context& ctx) { optimizer.settle(ctx); }

  // What a micro-batch needs of its own while others are computed beside it. All models have the same weights and
  // gradients.
  struct Lane {
    Model model;
    BalanceGradients balance;
  };
  // As many as there are micro-batches in flight; one serves whatever is computed alone.
  std::vector<std::unique_ptr<Lane>> lanes;
  Model& model;                         // of the first lane
  BalanceGradients& balance_gradients;  // of the first lane
  ShardedParameters parameters;
  Optimizer optimizer;
  BalanceLoss balance;

 private:
  CheckpointSlice balance_slice();
  void read_together(Context& ctx, const WeightSource& source, const std::function<void()>& read);

  const RunConfig& config_;
  const ProcessMesh& mesh_;
  MemoryPlan plan_;
  Arena weights_, gradients_, optimizer_state_, offloaded_, windows_, activations_;
  PinnedMemory pinned_;  // the offloaded state
  MemoryEstimate needs_;
};

// The model with weights alone, for evaluation and generation on micro-batches of num_rows sequences.
class InferenceState {
 public:
  InferenceState(Context& ctx, const RunConfig& config, const ProcessMesh& mesh, int64_t num_rows, int64_t row_tokens);
  InferenceState(const InferenceState&) = delete;
  InferenceState& operator=(const InferenceState&) = delete;
  void load(Context& ctx, const WeightSource& source);

  Model model;

 private:
  ParameterLayout layout_;
  std::vector<Tensor> flat_weights_;
  Arena weights_, activations_;
};

}  // namespace braid
