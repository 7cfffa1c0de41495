#include "trainer/parity/parity.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>

#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/parity/report.h"

namespace braid {
namespace {

constexpr int kDiffers = 1;

// The values of an enum by name.
template <class E>
std::map<std::string, E> choices(std::initializer_list<E> values) {
  std::map<std::string, E> names;
  for (E value : values) names[name_of_enum(value)] = value;
  return names;
}

std::unique_ptr<Machine> open_machine(const ParityOptions& options) {
  RunConfig config;
  config.device = options.device;
  config.precision = options.precision;
  return open_machine(config);
}

}  // namespace

void add_parity_command(CLI::App& app, Action& action) {
  struct Options {
    ParityOptions parity;
    std::string forward, training;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "parity",
      "Compare a Hugging Face model's logits, loss, gradients or training with stored references; exit 1 if "
      "they differ");
  command->add_option("--model", options->parity.model, "Hugging Face folder")->required();
  CLI::Option_group* file = command->add_option_group("reference", "one of");
  file->add_option("--reference", options->forward, "safetensors file with logits, and loss and gradients if wanted");
  file->add_option("--train", options->training, "safetensors file with batches, losses and gradient norms");
  file->require_option(1);
  command->add_option("--device", options->parity.device, "where to compute; default cpu")
      ->transform(CLI::CheckedTransformer(choices({DeviceChoice::kCpu, DeviceChoice::kCuda})))
      ->option_text("cpu|cuda");
  command->add_option("--precision", options->parity.precision, "default fp32; fp64 on the CPU, bf16 on a GPU")
      ->transform(CLI::CheckedTransformer(choices({Precision::kFp32, Precision::kFp64, Precision::kBf16})))
      ->option_text("fp32|fp64|bf16");
  command->add_option("--recompute", options->parity.recompute, "what backward makes again; default none")
      ->transform(CLI::CheckedTransformer(
          choices({Recompute::kNone, Recompute::kElementwise, Recompute::kMoe, Recompute::kLayer})))
      ->option_text("none|elementwise|moe|layer");
  command->add_option("--rtol", options->parity.rtol, "relative RMS error allowed per tensor; default 1e-4");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &action] {
    action = [options] {
      ParityOptions& parity = options->parity;
      const bool trains = options->forward.empty();
      parity.reference = trains ? options->training : options->forward;
      use_default_threads();
      const std::unique_ptr<Machine> machine = open_machine(parity);
      const ParityReport report = trains ? check_training(machine->ctx, parity) : check_forward(machine->ctx, parity);
      std::fputs((options->json ? to_json(report, parity) : to_text(report, parity)).c_str(), stdout);
      return report.passed() ? 0 : kDiffers;
    };
  });
}

}  // namespace braid
