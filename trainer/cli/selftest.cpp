#include <algorithm>
#include <memory>

#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/device/start.h"
#include "trainer/isolation_check.h"

namespace braid {
namespace {

struct Part {
  std::string name;
  RunConfig config;
};

// The model as it is, and one made of each kind of its layers alone, so that a leak has a place.
std::vector<Part> parts_of(const RunConfig& config) {
  std::vector<LayerType> types;
  for (int64_t layer = 0; layer < config.model.num_hidden_layers; ++layer)
    types.push_back(config.model.layer_type(layer));
  const auto attention = std::count(types.begin(), types.end(), LayerType::kFullAttention);
  const auto linear = static_cast<int64_t>(types.size()) - attention;
  std::string whole = concat("the model (", linear, " layers with convolution and delta rule, ", attention,
                             " with attention, MoE in all", config.mtp.on() ? ", MTP)" : ")");
  std::vector<Part> parts = {{whole, config}};
  const auto add = [&](const char* name, LayerType type, int64_t count) {
    if (count == 0) return;
    Part part{name, config};
    part.config.mtp.depth = 0;
    part.config.model.num_hidden_layers = std::min<int64_t>(count, 2);
    part.config.model.layer_types.assign(part.config.model.num_hidden_layers, type);
    parts.push_back(std::move(part));
  };
  add("convolution, delta rule and MoE alone", LayerType::kLinearAttention, linear);
  add("attention and MoE alone", LayerType::kFullAttention, attention);
  return parts;
}

int isolation(const ConfigArguments& arguments) {
  RunConfig config = arguments.read();
  config.parallel.expert = config.parallel.context = 1;
  config.memory.recompute = config.memory.recompute == Recompute::kAuto ? Recompute::kNone : config.memory.recompute;
  check_model_config(config);
  use_default_threads();
  const std::unique_ptr<Machine> machine = open_machine(config);
  check<ConfigError>(machine->world->size() == 1, "braid selftest isolation runs on one rank, not on ",
                     machine->world->size());
  const ProcessMesh mesh(std::move(machine->world), 1, config.model.num_experts);
  start_on_device(machine->ctx, mesh, config, SelfCheck::kNo, stderr);
  for (const Part& part : parts_of(config)) {
    const IsolationReport kept = check_isolation(machine->ctx, mesh, part.config, Boundary::kKept);
    check<NumericsError>(kept.isolated(), "documents are not isolated: ", part.name,
                         ": with other tokens in one document ", kept.first_difference, " (in all ",
                         kept.differing_outputs, " outputs, ", kept.differing_mtp_outputs, " of the MTP block, ",
                         kept.differing_losses, " losses, ", kept.differing_gradients, " gradients)");
    print_line(part.name, ": all ", kept.changed_document_tokens, " tokens of one document changed; of the ",
               kept.other_tokens, " of the other two ", kept.outputs, " outputs, ",
               kept.mtp_outputs > 0 ? concat(kept.mtp_outputs, " outputs of the MTP block, ") : "", kept.token_losses,
               " losses and ", kept.gradients, " gradients kept their bits",
               kept.reordered_gradients > 0
                   ? concat(" (", kept.reordered_gradients,
                            " gradients of experts where that document "
                            "reaches none; else its rows move theirs, and sums round otherwise)")
                   : "");
    const IsolationReport without = check_isolation(machine->ctx, mesh, part.config, Boundary::kTakenAway);
    check<NumericsError>(without.differing_outputs > 0 && without.differing_gradients > 0, part.name,
                         ": the check sees nothing even where the boundary between two documents is taken away");
    print_line("  with the boundary behind that document taken away ", without.differing_outputs, " outputs, ",
               without.differing_losses, " losses and ", without.differing_gradients, " gradients change");
  }
  print_line("documents are isolated");
  return 0;
}

}  // namespace

void add_selftest_command(Command app) {
  auto config = std::make_shared<ConfigArguments>();
  const Command command = app.command("selftest", "Prove on this machine what a model must keep to").needs_command();
  const Command isolation_command =
      command.command("isolation", "Change one document of a packed row: all the others give keeps its bits");
  add_config(isolation_command, *config, "YAML config; needs no data").required();
  isolation_command.runs([config] { return isolation(*config); });
}

}  // namespace braid
