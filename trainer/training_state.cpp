#include "trainer/training_state.h"

#include <cstring>

namespace braid {
namespace {

constexpr const char* kBalanceTensor = "balance/previous_counts";
constexpr const char* kMtpTensor = "weights/mtp.fc.weight";  // every MTP block has it

}  // namespace

DType dtype_of_precision(Precision precision) {
  switch (precision) {
    case Precision::kFp64: return DType::kF64;
    case Precision::kFp32: return DType::kF32;
    case Precision::kBf16: return DType::kBF16;
  }
  return DType::kF32;
}

TrainingState::TrainingState(const RunConfig& config, const ProcessMesh& mesh)
    : model(config.model, config.mtp, config.train.micro_batch_size, config.train.seq_length,
            dtype_of_precision(config.precision), mesh.expert(), config.parallel.max_rows_factor),
      adamw(config.optimizer, ParameterLayout(config.model, config.mtp, mesh), mesh,
            dtype_of_precision(config.precision)),
      balance(config.balance, model.num_moe_layers(), config.model.num_experts, mesh.world()),
      config_(config),
      mesh_(mesh) {
  adamw.plan(plan_.weights, plan_.gradients, plan_.moments);
  model.plan_activations(plan_.activations);
  balance.plan(plan_.activations, config.train.micro_batch_size);
}

void TrainingState::allocate() {
  weights_ = Arena("weights", plan_.weights);
  gradients_ = Arena("gradients", plan_.gradients);
  moments_ = Arena("optimizer moments", plan_.moments);
  activations_ = Arena("activations", plan_.activations);
  adamw.bind(model.weights(), model.gradients());
}

void TrainingState::initialize(Context& ctx) {
  initialize_weights(ctx, config_.model, config_.init, adamw.layout(), adamw.dense_weights(), adamw.expert_weights(),
                     static_cast<uint64_t>(config_.train.seed));
}

CheckpointSlice TrainingState::balance_slice() {
  Tensor& counts = balance.previous_counts();
  return {kBalanceTensor, counts.shape(), 0, counts.numel(), counts};
}

void TrainingState::load(const CheckpointReader& reader) {
  adamw.load(reader);
  CheckpointSlice counts = balance_slice();
  reader.read(counts);
}

void TrainingState::load_weights(const CheckpointReader& source) {
  check<CheckpointError>(!config_.mtp.on() || source.contains(kMtpTensor), source.path(),
                         ": holds no MTP block (mtp.*), but this run trains one: set mtp.depth=0");
  braid::load_weights(source, adamw.layout(), adamw.dense_weights(), adamw.expert_weights());
}

std::vector<CheckpointSlice> TrainingState::slices() {
  std::vector<CheckpointSlice> slices = adamw.slices();
  if (mesh_.rank() == 0) slices.push_back(balance_slice());
  return slices;
}

InferenceState::InferenceState(const RunConfig& config, const ProcessMesh& mesh, int64_t num_rows, int64_t row_tokens)
    : model(config.model, config.mtp, num_rows, row_tokens, dtype_of_precision(config.precision), mesh.expert(),
            config.parallel.max_rows_factor),
      layout_(config.model, config.mtp, mesh) {
  const DType dtype = dtype_of_precision(config.precision);
  Planner weights, activations;
  weights.add("dense.weights", dense_, {layout_.dense().numel}, dtype);
  weights.add("expert.weights", expert_, {layout_.expert().numel}, dtype);
  model.plan_activations(activations);
  weights_ = Arena("weights", weights);
  activations_ = Arena("activations", activations);
  layout_.bind(model.weights(), dense_, expert_);
}

void InferenceState::load(const WeightSource& source) { load_weights(source, layout_, dense_, expert_); }

}  // namespace braid
