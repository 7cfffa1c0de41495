#include "trainer/parity/parity.h"

#include <cstdio>
#include <memory>

#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/parity/report.h"

namespace braid {
namespace {

constexpr int kDiffers = 1;

std::unique_ptr<Machine> open_machine(const ParityOptions& options) {
  RunConfig config;
  config.device = options.device;
  config.precision = options.precision;
  return open_machine(config);
}

}  // namespace

void add_parity_command(Command app) {
  struct Options {
    ParityOptions parity;
    std::string forward, training;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command(
      "parity",
      "Compare a Hugging Face model's logits, loss, gradients or training with stored references; exit 1 if "
      "they differ");
  command.option("--model", options->parity.model, "Hugging Face folder").required();
  const Command file = command.one_option_of("reference", "one of");
  file.option("--reference", options->forward, "safetensors file with logits, and loss and gradients if wanted");
  file.option("--train", options->training, "safetensors file with batches, losses and gradient norms");
  command.choice("--device", options->parity.device, {DeviceChoice::kCpu, DeviceChoice::kCuda},
                 "where to compute; default cpu");
  command.choice("--precision", options->parity.precision, {Precision::kFp32, Precision::kFp64, Precision::kBf16},
                 "default fp32; fp64 on the CPU, bf16 on a GPU");
  command.choice("--recompute", options->parity.recompute,
                 {Recompute::kNone, Recompute::kElementwise, Recompute::kMoe, Recompute::kLayer},
                 "what backward makes again; default none");
  command.option("--rtol", options->parity.rtol, "relative RMS error allowed per tensor; default 1e-4");
  command.flag("--json", options->json, "print one JSON object");
  command.runs([options] {
    ParityOptions& parity = options->parity;
    const bool trains = options->forward.empty();
    parity.reference = trains ? options->training : options->forward;
    use_default_threads();
    const std::unique_ptr<Machine> machine = open_machine(parity);
    const ParityReport report = trains ? check_training(machine->ctx, parity) : check_forward(machine->ctx, parity);
    std::fputs((options->json ? to_json(report, parity) : to_text(report, parity)).c_str(), stdout);
    return report.passed() ? 0 : kDiffers;
  });
}

}  // namespace braid
