#include "trainer/step_memory.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "kernels/core/memory.h"
#include "model/model_flop.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/train_step.h"

namespace braid {
namespace {

// Rows without padding, of documents of that many tokens behind one of `first`. Two micro-batches for each that is in
// flight stand for any number of them: each place takes one pass with all rows at once and one in rounds
// (ExpertExchange::rows_were_cut), and adds to what the one before wrote.
StepBatches batches_of_documents(const RunConfig& config, const RowShare& share, int64_t first, int64_t tokens) {
  const int64_t B = config.train.micro_batch_size, T = config.train.seq_length;
  const auto N = static_cast<size_t>(B * T);
  Segments segments = Segments::whole_rows(B, T);
  segments.offsets.clear();
  for (int64_t row = 0; row < B; ++row) {
    segments.offsets.push_back(row * T);
    for (int64_t n = first; n < T; n += tokens) segments.offsets.push_back(row * T + n);
  }
  segments.offsets.push_back(B * T);
  StepBatches batches;
  for (int64_t i = 0; i < 2 * config.parallel.micro_batches_in_flight; ++i)
    batches.add({B, T, std::vector<int64_t>(N, 0), std::vector<int64_t>(N, 0), segments}, share);
  return batches;
}

int num_groups_of_several(const ProcessMesh& mesh) {
  int count = mesh.context() ? 1 : 0;
  for (const Communicator* group : {&mesh.world(), &mesh.expert(), &mesh.expert_data()}) count += group->size() > 1;
  return count;
}

// Host memory of a rank's saves; on a CPU none but a copy, as the rest is written from where it lies.
int64_t saving_bytes(const RunConfig& config, TrainingState& state, Device device) {
  if (config.checkpoint.in_background()) return CheckpointSaver::copy_bytes(state.slices(config.checkpoint.contents));
  return device == Device::kCuda ? kStagingBytes : 0;
}

}  // namespace

MemoryEstimate memory_without_scratch(const RunConfig& config, const ProcessMesh& mesh, Device device) {
  TrainingState state(config, mesh);
  const MemoryPlan& plan = state.memory();
  MemoryEstimate memory = {plan.weights.total_bytes(), plan.gradients.total_bytes(), plan.optimizer_bytes(device),
                           plan.activations.total_bytes()};
  if (device == Device::kCuda) memory.offloaded = plan.offloaded.total_bytes();
  (device == Device::kCuda ? memory.saving_on_host : memory.saving) = saving_bytes(config, state, device);
  return memory;
}

MemoryEstimate count_memory(const RunConfig& config, const ProcessMesh& mesh, const Context& where) {
  MemoryEstimate memory = memory_without_scratch(config, mesh, where.device());
  if (!where.on_cuda() && config.precision == Precision::kBf16) return memory;  // no CPU computes in it
  TrainingState counted(config, mesh);  // what counting leaves behind is no state of a run
  counted.bind();
  Context counter = where.counter();
  // As few documents as there can be, and as many; of shared rows also the most that go on from other parts.
  const int64_t T = config.train.seq_length, part = T / mesh.share().num_parts();
  std::vector<std::pair<int64_t, int64_t>> documents = {{T, T}, {1, 1}};
  if (!mesh.share().is_whole()) documents.push_back({mesh.share().part(1) * part + 1, 1});
  for (const auto& [first, tokens] : documents) {
    const StepBatches batches = batches_of_documents(config, mesh.share(), first, tokens);
    try {
      train_step(counter, counted, batches, mesh, config, 1);
      counted.model.forward(counter, batches.micro_batches.front());
      counted.model.losses(counter);
    } catch (const ShapeError& error) {
      throw ConfigError(concat("no operator computes a model of this shape: ", error.what()));
    }
  }
  memory.scratch = counter.scratch_peak_bytes();
  memory.second_scratch = counter.scratch_peak_bytes() - counter.own_scratch_peak_bytes();
  for (const auto& lane : counted.lanes) memory.windows += lane->model.window_bytes();
  if (where.on_cuda()) memory.libraries = library_bytes(num_groups_of_several(mesh));
  return memory;
}

int64_t available_memory(const Context& ctx, const ProcessMesh& mesh) {
  if (ctx.on_cuda()) return gpu_memory().free_bytes;
  return available_host_bytes() / mesh.size();  // as if all ranks were on this machine
}

double repeated_percent(const RunConfig& config, const Recomputation& recompute) {
  const int64_t T = config.train.seq_length;
  return 100 * repeated_flop_per_token(config.model, config.mtp, T, recompute) /
         training_flop_per_token(config.model, config.mtp, T);
}

std::string describe_recompute(const RunConfig& config, const Recomputation& recompute, int64_t total_bytes) {
  char share[64];
  std::snprintf(share, sizeof share, "%.1f", repeated_percent(config, recompute));
  return concat(to_text(recompute, num_recomputed_layers(config.model, config.mtp)), ": ", gib_text(total_bytes),
                ", repeats ", share, " % of a step's products");
}

RunConfig with_recomputation(const RunConfig& config, const Recomputation& recomputation) {
  RunConfig changed = config;
  changed.memory.recompute = recomputation.policy;
  changed.memory.recompute_further = recomputation.further;
  return changed;
}

Recomputation recomputation_that_fits(const RunConfig& config, int64_t available_bytes,
                                      const std::function<int64_t(const RunConfig&)>& total_of) {
  const auto fits = [&](const Recomputation& r) { return total_of(with_recomputation(config, r)) <= available_bytes; };
  const auto first = std::find_if(std::begin(kRecomputePolicies), std::end(kRecomputePolicies), fits);
  if (first == std::begin(kRecomputePolicies)) return *first;
  if (first == std::end(kRecomputePolicies)) return first[-1];
  int64_t too_few = 0, enough = num_recomputed_layers(config.model, config.mtp);
  while (enough - too_few > 1) {
    const int64_t middle = (too_few + enough) / 2;
    (fits({first[-1], middle}) ? enough : too_few) = middle;
  }
  if (enough == num_recomputed_layers(config.model, config.mtp)) return *first;
  return {first[-1], enough};
}

RunConfig with_recompute_that_fits(const RunConfig& config, const ProcessMesh& mesh, Context& ctx,
                                   int64_t available_bytes, std::string& said) {
  said.clear();
  if (config.memory.recompute != Recompute::kAuto) return config;
  // A mix as one number, which grows with what is made again.
  const int64_t layers = num_recomputed_layers(config.model, config.mtp);
  const auto place_of = [&](const Recomputation& r) { return static_cast<int64_t>(r.policy) * layers + r.further; };
  std::map<int64_t, int64_t> totals;  // to count one is to go through a step, so each once
  const auto total_of = [&](const RunConfig& c) {
    const auto [at, is_new] = totals.try_emplace(place_of(c.memory.recomputation()));
    if (is_new) at->second = count_memory(c, mesh, ctx).total();
    return at->second;
  };
  // The ranks take what the one needs that has least.
  int64_t place = place_of(recomputation_that_fits(config, available_bytes, total_of));
  mesh.world().all_reduce(ctx, Tensor::of(&place, {1}), ReduceOp::kMax);
  const Recomputation taken(static_cast<Recompute>(place / layers), place % layers);
  const RunConfig chosen = with_recomputation(config, taken);
  said = concat("memory.recompute auto, ", gib_text(available_bytes), " free; takes ",
                describe_recompute(chosen, taken, total_of(chosen)));
  for (const Recompute policy : kRecomputePolicies) {
    if (policy > taken.policy || Recomputation(policy) == taken) break;
    said += concat("; ", name_of_enum(policy), " would need ", gib_text(total_of(with_recomputation(config, policy))));
  }
  return chosen;
}

}  // namespace braid
