#include "trainer/plan.h"

#include <cstdio>
#include <memory>

#include "trainer/training_state.h"

namespace braid {
namespace {

// A group that has a size but no members: planning asks for sizes only.
class PlannedGroup final : public Communicator {
 public:
  explicit PlannedGroup(int size) : size_(size) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }
  void all_reduce(Context&, Tensor, ReduceOp) override { refuse(); }
  void reduce_scatter(Context&, Tensor, const Tensor&, ReduceOp) override { refuse(); }
  void all_gather(Context&, Tensor, const Tensor&) override { refuse(); }
  void all_to_all_rows(Context&, Tensor, std::span<const int64_t>, const Tensor&, std::span<const int64_t>) override {
    refuse();
  }
  void broadcast(Context&, Tensor, int) override { refuse(); }
  void barrier(Context&) override { refuse(); }
  std::unique_ptr<Communicator> split(int) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { throw CommunicationError("a plan moves no data"); }
  int size_;
};

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

std::string grouped(int64_t n) {
  std::string digits = std::to_string(n), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GiB", double(bytes) / double(int64_t{1} << 30));
  return text;
}

}  // namespace

ParameterCounts count_parameters(const ModelConfig& model, const MtpConfig& mtp) {
  ParameterCounts n;
  for (const Parameter& p : parameter_table(model, mtp)) {
    const int64_t count = p.shape.numel();
    const bool in_mtp = p.name.rfind("mtp.", 0) == 0;
    const bool is_expert = p.owner == Owner::kExpertRank;
    (in_mtp ? n.mtp : n.main) += count;
    if (p.name == "model.embed_tokens.weight") n.embedding = count;
    else if (p.name == "lm_head.weight") n.head = count;
    else
      (in_mtp ? n.active_mtp : n.active_main) +=
          is_expert ? count / model.num_experts * model.num_experts_per_tok : count;
    if (in_mtp) continue;
    if (is_expert) n.routed_experts += count;
    else if (has(p.name, "shared_expert")) n.shared_experts += count;
    else if (has(p.name, ".mlp.gate.")) n.routers += count;
    else if (has(p.name, "_attn.")) n.mixers += count;
    else if (has(p.name, "norm.weight")) n.norms += count;
  }
  return n;
}

MemoryEstimate estimate_memory(const RunConfig& config, int64_t num_ranks) {
  const int64_t expert = config.parallel.expert;
  const ProcessMesh mesh(std::make_unique<PlannedGroup>(num_ranks), std::make_unique<PlannedGroup>(expert),
                         std::make_unique<PlannedGroup>(num_ranks / expert));
  const TrainingState state(config, mesh);
  const MemoryPlan& plan = state.memory();
  return {plan.weights.total_bytes(), plan.gradients.total_bytes(), plan.optimizer.total_bytes(),
          plan.activations.total_bytes()};
}

std::string format_plan(const RunConfig& config, int64_t num_ranks) {
  const ParameterCounts n = count_parameters(config.model, config.mtp);
  std::string out = "parameters\n";
  auto row = [&](const std::string& name, const std::string& value) {
    out += "  " + name + std::string(name.size() < 34 ? 34 - name.size() : 1, ' ');
    out += std::string(value.size() < 18 ? 18 - value.size() : 0, ' ') + value + '\n';
  };
  row("embedding", grouped(n.embedding));
  row("head", grouped(n.head));
  row("mixers", grouped(n.mixers));
  row("norms", grouped(n.norms));
  row("routers", grouped(n.routers));
  row("routed experts", grouped(n.routed_experts));
  row("shared experts", grouped(n.shared_experts));
  row("main model", grouped(n.main));
  row("main model without embedding, head", grouped(n.main - n.embedding - n.head));
  row("MTP block", grouped(n.mtp));
  row("main model and MTP block", grouped(n.total()));
  row("active per token, main", grouped(n.active_main));
  row("active per token, main and head", grouped(n.active_main + n.head));
  row("active per token, MTP block", grouped(n.active_mtp));
  if (config.train.seq_length == 0) return out;

  const MemoryEstimate memory = estimate_memory(config, num_ranks);
  out += concat("memory per rank, ", num_ranks, " ranks, expert parallel ", config.parallel.expert, ", ",
                name_of_enum(config.precision), ", micro-batch ", config.train.micro_batch_size, " x ",
                config.train.seq_length, " tokens\n");
  row("weights", gib(memory.weights));
  row("gradients", gib(memory.gradients));
  row("optimizer state", gib(memory.optimizer));
  row("activations", gib(memory.activations));
  row("total", gib(memory.total()));
  return out;
}

}  // namespace braid
