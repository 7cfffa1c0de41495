#include "trainer/training_state.h"

#include <algorithm>

#include "kernels/core/device_info.h"
#include "kernels/core/memory.h"
#include "model/initial_weights.h"
#include "parallel/rank_text.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/device/device_memory.h"

namespace braid {
namespace {

constexpr const char* kBalanceTensor = "balance/previous_counts";

std::vector<std::unique_ptr<TrainingState::Lane>> lanes_of(const RunConfig& config, const ProcessMesh& mesh) {
  std::vector<std::unique_ptr<TrainingState::Lane>> lanes;
  const int64_t micro_batches =
      config.train.global_batch_size / (config.train.micro_batch_size * mesh.num_data_ranks());
  const int64_t in_flight = std::clamp<int64_t>(micro_batches, 1, config.parallel.micro_batches_in_flight);
  for (int64_t i = 0; i < in_flight; ++i)
    lanes.push_back(std::unique_ptr<TrainingState::Lane>(new TrainingState::Lane{
        Model(config.model, config.mtp, {config.train.micro_batch_size, config.train.seq_length},
              dtype_of_precision(config.precision), mesh.expert(), config.parallel.max_rows_factor,
              config.memory.recomputation(), mesh.context()),
        {}}));
  return lanes;
}

}  // namespace

TrainingState::TrainingState(const RunConfig& config, const ProcessMesh& mesh)
    : lanes(lanes_of(config, mesh)),
      model(lanes.front()->model),
      balance_gradients(lanes.front()->balance),
      parameters(ParameterLayout(config.model, config.mtp, mesh, config.parallel.bucket_elements,
                                 Optimizer::whole_matrices(config.optimizer)),
                 mesh, dtype_of_precision(config.precision), config.optimizer.gradient_dtype),
      optimizer(config.optimizer, parameters),
      balance(config.balance, model.num_moe_layers(), config.model.num_experts, mesh.world()),
      config_(config),
      mesh_(mesh) {
  const bool offloads = config.memory.offload == Offload::kOptimizer;
  const StatePlan state(plan_.optimizer, plan_.offloaded,
                        parameters.leading_groups(offloads ? 1 - config.memory.offload_share : 1));
  parameters.plan(plan_.weights, plan_.gradients, state);
  optimizer.plan(state);
  if (offloads) optimizer.plan_windows(plan_.windows);
  std::vector<std::string> of_layers = config.log.metrics;
  std::erase(of_layers, LogSection::kGradNorms);
  for (auto& lane : lanes) {
    if (lane != lanes.front()) plan_.activations.begin_other_shared();
    lane->model.plan_activations(plan_.activations);
    lane->model.want_numbers(of_layers, plan_.activations);
    balance.plan_gradients(plan_.activations, lane->balance, lane->model.num_rows());
    lane->model.wait_before_layers([this](Context& ctx, int64_t layer) { optimizer.wait_for_layer(ctx, layer); });
  }
  balance.plan(plan_.activations);
}

void TrainingState::allocate(Context& ctx) {
  const Device device = ctx.device();
  for (const char* name : {"attention/logit_max", "attention/first_token_share"})
    check<ConfigError>(!ctx.on_cuda() || !config_.log.wants(name), "log.metrics: ", name, " is computed on CPUs only");
  assert(config_.memory.recompute != Recompute::kAuto);
  needs_ = count_memory(config_, mesh_, ctx);
  if (ctx.on_cuda()) check_gpu_memory(needs_, gpu_memory(), device_info(ctx).name);
  weights_ = Arena("weights", plan_.weights, device);
  gradients_ = Arena("gradients", plan_.gradients, device);
  optimizer_state_ = Arena("optimizer state", plan_.optimizer, device);
  if (ctx.on_cuda()) check_host_memory(needs_, std::min(mesh_.size(), Context::num_gpus()));
  offloaded_ = Arena("offloaded optimizer state", plan_.offloaded, Device::kCpu);
  if (ctx.on_cuda() && offloaded_.bytes() > 0) {
    pinned_ = PinnedMemory(plan_.offloaded.entries().front().slot->raw(), offloaded_.bytes());
    windows_ = Arena("windows of the optimizer state", plan_.windows, device);
  }
  activations_ = Arena("activations", plan_.activations, device);
  ctx.reserve_scratch(needs_.scratch.value_or(0) - needs_.second_scratch);
  if (lanes.size() > 1) ctx.second().reserve_scratch(needs_.second_scratch);
  bind();
}

void TrainingState::bind() {
  for (auto& lane : lanes) parameters.bind(lane->model.weights(), lane->model.gradients());
}

void TrainingState::initialize(Context& ctx) {
  parameters.load(ctx, InitialWeights(config_.model, config_.init, static_cast<uint64_t>(config_.train.seed)));
}

CheckpointSlice TrainingState::balance_slice() {
  Tensor& counts = balance.previous_counts();
  return {kBalanceTensor, counts.shape(), 0, counts.numel(), counts};
}

void TrainingState::load(Context& ctx, const CheckpointReader& reader) {
  read_together(ctx, reader, [&] {
    parameters.load_shards(ctx, reader);
    optimizer.load(ctx, reader);
    CheckpointSlice counts = balance_slice();
    read_slice(ctx, reader, counts);
  });
}

// What the ranks read of a checkpoint, each its part. An error of one is the error of all.
void TrainingState::read_together(Context& ctx, const WeightSource& source, const std::function<void()>& read) {
  all_or_none(ctx, mesh_.world(), [&] {
    read();
    return std::string();
  });
  source.settle(ctx, mesh_.world());
  parameters.gather_all_weights(ctx);
}

void TrainingState::load_weights(Context& ctx, const WeightSource& source) {
  read_together(ctx, source, [&] { parameters.load_shards(ctx, source); });
}

std::vector<CheckpointSlice> TrainingState::slices(CheckpointContents contents) {
  if (contents == CheckpointContents::kWeights) return parameters.slices(ShardedParameters::Stored::kComputedWith);
  std::vector<CheckpointSlice> slices = parameters.slices();
  for (CheckpointSlice& slice : optimizer.slices()) slices.push_back(std::move(slice));
  if (mesh_.rank() == 0) slices.push_back(balance_slice());
  return slices;
}

InferenceState::InferenceState(Context& ctx, const RunConfig& config, const ProcessMesh& mesh, int64_t num_rows,
                               int64_t row_tokens)
    : model(config.model, config.mtp, {num_rows, row_tokens}, dtype_of_precision(config.precision), mesh.expert(),
            config.parallel.max_rows_factor, Recompute::kLayer, mesh.context()),
      layout_(config.model, config.mtp, mesh) {
  Planner weights, activations;
  layout_.plan_weights(weights, flat_weights_, dtype_of_precision(config.precision));
  model.plan_activations(activations);
  weights_ = Arena("weights", weights, ctx.device());
  activations_ = Arena("activations", activations, ctx.device());
  layout_.bind(model.weights(), flat_weights_);
}

void InferenceState::load(Context& ctx, const WeightSource& source) {
  load_weights(ctx, source, layout_, flat_weights_);
}

}  // namespace braid
