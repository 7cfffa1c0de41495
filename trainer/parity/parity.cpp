#include "trainer/parity/parity.h"

#include <algorithm>
#include <map>

#include "kernels/core/copy.h"
#include "kernels/matmul.h"
#include "trainer/huggingface/huggingface_reader.h"
#include "trainer/parity/reference_file.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 20;  // of a reference, in memory at a time

// The next-token loss alone: nothing else has a weight.
RunConfig config_of(const ParityOptions& options, const ModelConfig& model, bool with_mtp, const Batch& batch) {
  RunConfig config;
  config.device = options.device;
  config.precision = options.precision;
  config.memory.recompute = options.recompute;
  config.model = model;
  config.mtp = {.depth = with_mtp ? 1 : 0, .loss_weight = 1};  // which turns the block on; no loss scale follows it
  config.balance.loss_weight = 0;
  config.train.micro_batch_size = config.train.global_batch_size = batch.num_rows;
  config.train.seq_length = batch.row_tokens;
  return config;
}

// Consecutive positions: `count` from row `hidden` of the model's hidden states and row `stored` of the reference.
struct PositionRun {
  int64_t hidden, stored, count;
};

// Position t of a row of T - 1 reads token t + 1, if that lies in the same document.
std::vector<PositionRun> mtp_runs(const Segments& s) {
  std::vector<PositionRun> runs;
  for (int64_t d = 0; d < s.num_documents(); ++d)
    runs.push_back({s.begin(d), s.begin(d) - s.begin(d) / s.row_tokens, s.length(d) - 1});
  return runs;
}

Distance compare_logits(Context& ctx, const Tensor& hidden, const Tensor& lm_head, const ReferenceFile& file,
                        const std::string& name, const std::vector<PositionRun>& runs) {
  const int64_t V = lm_head.dim(0), block_rows = std::max<int64_t>(1, kBlockElements / V);
  const DType dtype = wide_dtype(hidden.dtype());
  std::vector<double> got_memory(static_cast<size_t>(block_rows * V));  // numbers of either dtype
  std::vector<float> expected_memory(static_cast<size_t>(block_rows * V));
  Distance distance;
  for (const PositionRun& run : runs) {
    for (int64_t first = 0; first < run.count; first += block_rows) {
      const int64_t rows = std::min(block_rows, run.count - first), element = (run.stored + first) * V;
      Scratch scratch(ctx);
      Tensor logits = scratch.tensor({rows, V}, dtype), got(got_memory.data(), dtype, {rows, V});
      Tensor expected = Tensor::of(expected_memory.data(), {rows, V});
      linear_forward(ctx, logits, hidden.rows(run.hidden + first, run.hidden + first + rows), lm_head);
      copy(ctx, got, logits);
      file.read(name, element, expected);
      distance.add(got, expected, element);
    }
  }
  return distance;
}

// One forward pass, its logits and its loss.
void compare_outputs(Context& ctx, Model& model, const ForwardReference& reference, const ParityBounds& bounds,
                     ParityReport& report) {
  const ReferenceFile& file = reference.file;
  const Segments& segments = reference.batch.segments;
  const Tensor& lm_head = model.weights().lm_head;
  model.forward(ctx, reference.batch);
  const auto compare = [&](const std::string& name, const Tensor& hidden, const std::vector<PositionRun>& runs) {
    report.tensors.push_back(judge(name, file.entries().at(name).shape,
                                   compare_logits(ctx, hidden, lm_head, file, name, runs), bounds.logits));
  };
  compare("logits", model.hidden(), {{0, 0, segments.num_tokens()}});
  if (file.has("mtp_logits")) {
    compare("mtp_logits", model.mtp_hidden(), mtp_runs(segments));
    report.mtp_compared = reference.batch.counts.mtp_tokens;
    report.mtp_positions = segments.num_rows * (segments.row_tokens - 1);
  }
  if (file.has("loss")) {
    const double got = model.losses(ctx).lm / double(reference.batch.counts.lm_targets);
    report.curves.push_back(judge_curve("loss", {got}, {file.read_all<float>("loss")[0]}, bounds.loss));
  }
}

// The backward pass of the last forward.
void backward(Context& ctx, TrainingState& state, const Batch& batch) {
  const TokenCounts& counts = batch.counts;
  state.parameters.zero_gradients(ctx);
  state.balance.begin_step(ctx, std::vector<int64_t>(state.model.num_moe_layers(), counts.tokens));
  state.balance.prepare_backward(ctx, state.balance_gradients, state.model.routers());
  state.model.losses_and_backward(ctx, {.lm = 1 / double(counts.lm_targets)}, state.balance_gradients);
}

Distance compare_gradient(Context& ctx, const Tensor& gradient, const ReferenceFile& file, const std::string& name) {
  Distance distance;
  const int64_t numel = gradient.numel();
  std::vector<double> got_memory(static_cast<size_t>(std::min(kBlockElements, numel)));  // numbers of either dtype
  std::vector<float> expected_memory(got_memory.size());
  for (int64_t first = 0; first < numel; first += kBlockElements) {
    const int64_t count = std::min(kBlockElements, numel - first);
    Tensor got(got_memory.data(), gradient.dtype(), {count}), expected = Tensor::of(expected_memory.data(), {count});
    copy(ctx, got, gradient.rows(first, first + count));
    file.read(name, first, expected);
    distance.add(got, expected, first);
  }
  return distance;
}

void compare_gradients(Context& ctx, Model& model, const ForwardReference& reference, const ParityBounds& bounds,
                       ParityReport& report) {
  std::map<std::string, Tensor> flat;  // gradients by the name of their parameter
  model.gradients().visit(model.config(), [&](const std::string& name, Tensor& gradient, const Shape&, const auto&...) {
    flat[name] = gradient.view({gradient.numel()});
  });
  std::vector<Distance> distances;
  double largest_rms = 0;
  for (const ReferenceGradient& g : reference.gradients) {
    const Tensor got = flat.at(g.parameter).rows(g.first, g.first + g.numel);
    distances.push_back(compare_gradient(ctx, got, reference.file, g.name));
    largest_rms = std::max(largest_rms, distances.back().expected_rms());
  }
  for (size_t i = 0; i < distances.size(); ++i) {
    const ReferenceGradient& g = reference.gradients[i];
    report.tensors.push_back(judge_gradient(g.name, g.shape, distances[i], largest_rms, bounds));
  }
}

}  // namespace

bool ParityReport::passed() const {
  const auto has_passed = [](const auto& verdict) { return verdict.passed; };
  return std::all_of(tensors.begin(), tensors.end(), has_passed) &&
         std::all_of(curves.begin(), curves.end(), has_passed);
}

ParityReport check_forward(Context& ctx, const ParityOptions& options) {
  const ParityBounds bounds = parity_bounds(options.precision, options.rtol);
  ForwardReference reference(options.reference);
  const HuggingFaceReader reader(options.model);
  const bool with_mtp = reference.names_mtp();
  check<DataError>(!with_mtp || reader.has_mtp(), options.reference, ": is about an MTP block, but ", options.model,
                   " has none");
  const RunConfig config = config_of(options, reader.config(), with_mtp, reference.batch);
  reference.match(config.model.vocab_size, parameter_table(config.model, config.mtp));

  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  ParityReport report{.not_compared = reference.not_compared};
  if (reference.gradients.empty()) {
    InferenceState state(ctx, config, mesh, reference.batch.num_rows, reference.batch.row_tokens);
    state.load(ctx, reader);
    compare_outputs(ctx, state.model, reference, bounds, report);
  } else {
    TrainingState state(config, mesh);
    state.allocate(ctx);
    state.parameters.load(ctx, reader);
    compare_outputs(ctx, state.model, reference, bounds, report);
    backward(ctx, state, reference.batch);
    compare_gradients(ctx, state.model, reference, bounds, report);
  }
  return report;
}

ParityReport check_training(Context& ctx, const ParityOptions& options) {
  const ParityBounds bounds = parity_bounds(options.precision, options.rtol);
  const HuggingFaceReader reader(options.model);
  const TrainingReference reference(options.reference, reader.config().vocab_size);
  RunConfig config = config_of(options, reader.config(), false, reference.batches[0]);
  config.optimizer = reference.optimizer;
  config.schedule.kind = ScheduleKind::kConstant;
  config.run.steps = static_cast<int64_t>(reference.batches.size());

  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  TrainingState state(config, mesh);
  state.allocate(ctx);
  state.parameters.load(ctx, reader);
  std::vector<double> losses, grad_norms;
  for (int64_t step = 1; step <= config.run.steps; ++step) {
    StepBatches batches{step, {}, {}};
    batches.add(reference.batches[step - 1]);
    const StepResult result = train_step(ctx, state, batches, mesh, config, step);
    check<NumericsError>(result.problem.empty(), result.problem, "; no update was applied");
    losses.push_back(result.loss_lm);
    grad_norms.push_back(result.grad_norm);
  }
  ParityReport report;
  report.curves.push_back(judge_curve("losses", losses, reference.losses, bounds.curves));
  report.curves.push_back(judge_curve("grad_norms", grad_norms, reference.grad_norms, bounds.curves));
  return report;
}

}  // namespace braid
