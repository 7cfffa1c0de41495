#include "trainer/plan.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "kernels/build_config.h"
#include "trainer/plan_advice.h"
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

std::vector<std::pair<const char*, int64_t>> parameter_rows(const RunConfig& config) {
  const ParameterCounts n = count_parameters(config.model, config.mtp);
  return {{"embedding", n.embedding},
          {"head", n.head},
          {"mixers", n.mixers},
          {"norms", n.norms},
          {"routers", n.routers},
          {"routed experts", n.routed_experts},
          {"shared experts", n.shared_experts},
          {"main model", n.main},
          {"main model without embedding, head", n.main - n.embedding - n.head},
          {"MTP block", n.mtp},
          {"main model and MTP block", n.total()},
          {"active per token, main", n.active_main},
          {"active per token, main and head", n.active_main + n.head},
          {"active per token, MTP block", n.active_mtp}};
}

// As on the command line of a plan for so many ranks.
std::string setting_text(const PlanChange& change, int64_t num_ranks) {
  std::string text = change.num_ranks == num_ranks ? "" : concat("--ranks ", change.num_ranks);
  for (const std::string& override : change.overrides) text += concat(text.empty() ? "" : " ", override);
  return text;
}

// Whether a run fits, and what would make it.
std::string verdict(const RunConfig& config, int64_t num_ranks, const GpuModel& gpu, const MemoryEstimate& memory) {
  const std::string known = memory.scratch ? "" : " (without scratch)",
                    card = concat(gpu.name, ", ", gib_text(gpu.memory_bytes));
  const int64_t left = gpu.memory_bytes - memory.total();
  if (left >= 0) return concat("fits ", card, ": ", gib_text(left), " to spare", known, '\n');
  std::string out = concat("does not fit ", card, ": ", gib_text(-left), " too much", known, "\none change alone:\n");
  const PlanAdvice advice = advise(config, num_ranks, gpu);
  int64_t ranks = num_ranks;
  const auto line = [&](const PlanChange& change) {
    char text[400];
    std::snprintf(text, sizeof text, "  %-32s %14s  %-12s  %s\n", setting_text(change, ranks).c_str(),
                  gib_text(change.total_bytes).c_str(), change.fits ? "fits" : "does not fit", change.price.c_str());
    out += text;
  };
  for (const PlanChange& change : advice.alone) line(change);
  out += "one after the other:\n";
  for (const PlanChange& change : advice.in_turn) {
    line(change);
    ranks = change.num_ranks;
  }
  if (!advice.in_turn.empty() && advice.in_turn.back().fits)
    return concat(out, "together: ", setting_text({advice.together, ranks, {}}, num_ranks), '\n');
  return out + "none of these makes it fit\n";
}

}  // namespace

Recomputation recompute_that_fits(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
  if (!gpu) return Recompute::kNone;
  return recomputation_that_fits(config, gpu->memory_bytes,
                                 [&](const RunConfig& c) { return estimate_memory(c, num_ranks, gpu).total(); });
}

std::string format_plan(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
  std::string out = "parameters\n";
  auto row = [&](const std::string& name, const std::string& value) {
    out += "  " + name + std::string(name.size() < 34 ? 34 - name.size() : 1, ' ');
    out += std::string(value.size() < 18 ? 18 - value.size() : 0, ' ') + value + '\n';
  };
  for (const auto& [what, count] : parameter_rows(config)) row(what, grouped(count));
  if (config.train.seq_length == 0) return out;

  const MemoryEstimate memory = estimate_memory(config, num_ranks, gpu);
  out += concat("memory of ", num_ranks == 1 ? "the one rank" : concat("each of ", num_ranks, " ranks"),
                ", expert parallel ", config.parallel.expert, ", ",
                config.parallel.context > 1 ? concat("rows shared by ", config.parallel.context, ", ") : "",
                name_of_enum(config.precision), ", micro-batch ", config.train.micro_batch_size, " x ",
                config.train.seq_length, " tokens, recompute ",
                to_text(config.memory.recomputation(), num_recomputed_layers(config.model, config.mtp)), '\n');
  for (const MemoryEstimate::Row& line : memory.rows()) row(line.what, gib_text(line.bytes));
  if (!memory.scratch) row("scratch", "not counted");
  row("total", gib_text(memory.total()));
  if (const double again = repeated_percent(config, config.memory.recomputation()); again > 0) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f %%  ", again);
    row("products of a step made again", text);
  }
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

std::string plan_json(const RunConfig& config, int64_t num_ranks, const GpuModel* gpu) {
  nlohmann::ordered_json json;
  const auto key = [](std::string words) {
    std::erase(words, ',');
    std::replace(words.begin(), words.end(), ' ', '_');
    return words;
  };
  for (const auto& [what, count] : parameter_rows(config)) json["parameters"][key(what)] = count;
  if (config.train.seq_length == 0) return json.dump() + '\n';
  const MemoryEstimate memory = estimate_memory(config, num_ranks, gpu);
  json["ranks"] = num_ranks;
  for (const MemoryEstimate::Row& line : memory.rows()) json["memory_bytes"][key(line.what)] = line.bytes;
  json["total_bytes"] = memory.total();
  json["scratch_is_counted"] = memory.scratch.has_value();
  json["host_memory_bytes"] = {{"optimizer_state", memory.offloaded}, {"saves", memory.saving_on_host}};
  json["recompute"] = to_text(config.memory.recomputation(), num_recomputed_layers(config.model, config.mtp));
  json["repeated_percent"] = repeated_percent(config, config.memory.recomputation());
  if (!gpu) return json.dump() + '\n';
  json["device"] = {{"name", gpu->name}, {"memory_bytes", gpu->memory_bytes}};
  json["fits"] = memory.total() <= gpu->memory_bytes;
  const PlanAdvice advice = json["fits"] ? PlanAdvice() : advise(config, num_ranks, *gpu);
  for (const auto& [name, changes] : {std::pair("alone", &advice.alone), std::pair("in_turn", &advice.in_turn)}) {
    json[name] = nlohmann::ordered_json::array();
    for (const PlanChange& change : *changes)
      json[name].push_back({{"overrides", change.overrides},
                            {"ranks", change.num_ranks},
                            {"total_bytes", change.total_bytes},
                            {"fits", change.fits},
                            {"price", change.price}});
  }
  json["together"] = advice.together;
  return json.dump() + '\n';
}

}  // namespace braid
