#include "trainer/plan.h"

#include <cstdio>
#include <functional>
#include <memory>

#include "kernels/build_config.h"
#include "model/model_flop.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

bool has(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

std::string grouped(int64_t n) {
  std::string digits = std::to_string(n), out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
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

MemoryEstimate estimate_memory(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
  const int64_t expert = config.parallel.expert;
  const PlannedRanks ranks = gpu && expert <= kGpusPerHost ? PlannedRanks::kGpusOfOneHost : PlannedRanks::kAnywhere;
  const ProcessMesh mesh(make_planned_communicator(num_ranks), make_planned_communicator(expert, ranks),
                         make_planned_communicator(num_ranks / expert),
                         make_planned_communicator(config.parallel.context));
  if (!gpu) return count_memory(config, mesh, Context::cpu());
  if constexpr (kWithCuda) return count_memory(config, mesh, Context::counter_on(*gpu));
  return memory_without_scratch(config, mesh, Device::kCuda);
}

namespace {

// A setting that needs less memory, and what for.
struct Change {
  std::string setting, price;
  RunConfig config;
  int64_t ranks;
};

// In the order in which one would take them: each on top of those before is dearer than they are.
std::vector<std::function<bool(Change&)>> changes_by_price() {
  const auto recompute = [](Recompute policy) {
    return [policy](Change& c) {
      RunConfig& config = c.config;
      if (config.memory.recompute >= policy) return false;
      const char* alone = config.memory.recompute_further > 0 ? " memory.recompute_further=0" : "";
      config = with_recomputation(config, policy);
      c.setting = concat("memory.recompute=", name_of_enum(policy), alone);
      char price[96];
      const int64_t T = config.train.seq_length;
      std::snprintf(price, sizeof price, "repeats %.0f %% of the products of a step",
                    100 * repeated_flop_per_token(config.model, config.mtp, T, policy) /
                        training_flop_per_token(config.model, config.mtp, T));
      c.price = policy == Recompute::kElementwise ? "repeats passes over elements" : price;
      return true;
    };
  };
  return {[](Change& c) {
            double& factor = c.config.parallel.max_rows_factor;
            if (c.config.parallel.expert == 1 || (factor > 0 && factor <= 1.25)) return false;
            factor = 1.25;
            c.setting = "parallel.max_rows_factor=1.25";
            c.price = "a rank that is sent more than 1.25 times the mean of rows works through them in rounds";
            return true;
          },
          recompute(Recompute::kElementwise),
          [](Change& c) {
            if (c.config.optimizer.moment_dtype != MomentDType::kFp32) return false;
            c.config.optimizer.moment_dtype = MomentDType::kBf16;
            c.setting = "optimizer.moment_dtype=bf16";
            c.price = "moments are rounded";
            return true;
          },
          [](Change& c) {
            RunConfig& config = c.config;
            if (config.precision != Precision::kBf16 || config.optimizer.gradient_dtype == GradientDType::kBf16)
              return false;
            config.optimizer.gradient_dtype = GradientDType::kBf16;
            c.setting = "optimizer.gradient_dtype=bf16";
            c.price = "gradients of experts are rounded, once for each micro-batch and their sum";
            return true;
          },
          [](Change& c) {
            OptimizerConfig& optimizer = c.config.optimizer;
            if (optimizer.kind != OptimizerKind::kAdamW || optimizer.moment_dtype == MomentDType::kInt8) return false;
            optimizer.moment_dtype = MomentDType::kInt8;
            c.setting = "optimizer.moment_dtype=int8";
            c.price = "moments of matrices are rounded to a byte each";
            return true;
          },
          [](Change& c) {
            if (c.config.optimizer.kind != OptimizerKind::kAdamW || c.config.memory.offload != Offload::kNone)
              return false;
            c.config.memory.offload = Offload::kOptimizer;
            c.setting = "memory.offload=optimizer";
            c.price = "state in host memory is copied both ways in every step; memory.offload_share takes less of it";
            return true;
          },
          recompute(Recompute::kMoe),
          recompute(Recompute::kLayer),
          [](Change& c) {
            if (c.config.train.micro_batch_size == 1) return false;
            c.config.train.micro_batch_size = 1;
            c.setting = "train.micro_batch_size=1";
            c.price = "smaller products";
            return true;
          },
          [](Change& c) {
            int64_t& expert = c.config.parallel.expert;
            if (c.ranks % (2 * expert) != 0 || c.config.model.num_experts % (2 * expert) != 0) return false;
            expert *= 2;
            c.setting = concat("parallel.expert=", expert);
            c.price = expert <= kGpusPerHost ? "rows travel between more GPUs" : "rows travel between hosts";
            return true;
          },
          [](Change& c) {
            const int64_t batch = c.config.train.global_batch_size, unit = c.config.train.micro_batch_size;
            if (batch % (2 * c.ranks / c.config.parallel.context * unit) != 0) return false;
            c.ranks *= 2;
            c.setting = concat("--ranks ", c.ranks);
            c.price = "twice the GPUs";
            return true;
          }};
}

// Whether a run fits, and what would make it.
std::string verdict(const RunConfig& config, int64_t num_ranks, const GpuModel& gpu, const MemoryEstimate& memory) {
  const std::string known = memory.scratch ? "" : " (without scratch)",
                    card = concat(gpu.name, ", ", gib_text(gpu.memory_bytes));
  const int64_t left = gpu.memory_bytes - memory.total();
  if (left >= 0) return concat("fits ", card, ": ", gib_text(left), " to spare", known, '\n');
  std::string out = concat("does not fit ", card, ": ", gib_text(-left), " too much", known, "\none change alone:\n");
  const auto line = [&](const Change& c, int64_t total) {
    char text[240];
    std::snprintf(text, sizeof text, "  %-32s %14s  %-12s  %s\n", c.setting.c_str(), gib_text(total).c_str(),
                  total <= gpu.memory_bytes ? "fits" : "does not fit", c.price.c_str());
    out += text;
  };
  const auto total_of = [&](const Change& c) { return estimate_memory(c.config, c.ranks, &gpu).total(); };
  for (const auto& change : changes_by_price()) {
    Change c{"", "", config, num_ranks};
    if (change(c)) line(c, total_of(c));
  }
  out += "one after the other:\n";
  Change c{"", "", config, num_ranks};
  for (const auto& change : changes_by_price()) {
    if (!change(c)) continue;
    const int64_t total = total_of(c);
    line(c, total);
    if (total <= gpu.memory_bytes) return out;
  }
  return out + "none of these makes it fit: it takes still more GPUs or a shorter train.seq_length\n";
}

}  // namespace

Recomputation recompute_that_fits(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
  if (!gpu) return Recompute::kNone;
  return recomputation_that_fits(config, gpu->memory_bytes,
                                 [&](const RunConfig& c) { return estimate_memory(c, num_ranks, gpu).total(); });
}

std::string format_plan(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
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

  const MemoryEstimate memory = estimate_memory(config, num_ranks, gpu);
  out += concat("memory of each of ", num_ranks, " ranks, expert parallel ", config.parallel.expert, ", ",
                config.parallel.context > 1 ? concat("rows shared by ", config.parallel.context, ", ") : "",
                name_of_enum(config.precision), ", micro-batch ", config.train.micro_batch_size, " x ",
                config.train.seq_length, " tokens, recompute ",
                to_text(config.memory.recomputation(), num_recomputed_layers(config.model, config.mtp)), '\n');
  for (const MemoryEstimate::Row& line : memory.rows()) row(line.what, gib_text(line.bytes));
  if (!memory.scratch) row("scratch", "not counted");
  row("total", gib_text(memory.total()));
  if (memory.offloaded > 0) {
    row("host memory of optimizer state", gib_text(memory.offloaded));
    const int64_t of_host = std::min<int64_t>(num_ranks, kGpusPerHost);
    if (of_host > 1) row(concat("  of ", of_host, " ranks on a host"), gib_text(of_host * memory.offloaded));
  }
  if (memory.saving_on_host > 0) row("host memory of saves, beside it", gib_text(memory.saving_on_host));
  if (!memory.scratch) out += "a build with CUDA counts the scratch of a GPU too; no GPU need be there\n";
  if (gpu) out += verdict(config, num_ranks, *gpu, memory);
  return out;
}

}  // namespace braid
