#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_scan.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"

namespace braid {
namespace {

constexpr size_t kShownDifferences = 20;

void say(const std::string& line) { std::printf("%s\n", line.c_str()); }

int inspect(const std::string& path) {
  const CheckpointReader reader = open_checkpoint(path);
  const CheckpointInfo& info = reader.info();
  int64_t bytes = 0;
  for (const auto& t : reader.tensors()) bytes += t.shape.numel() * size_of(t.dtype);
  say(reader.path());
  say(concat("step ", info.step, ", ", info.tokens, " tokens"));
  say(concat("written by ", info.num_ranks, " ranks, expert parallel ", info.expert_parallel, ", braid ",
             info.build_id));
  say(concat(reader.tensors().size(), " tensors, ", bytes, " bytes"));
  return 0;
}

int verify(const std::string& path) {
  const CheckpointReader reader = open_checkpoint(path);
  reader.verify();
  check_finite(reader);
  say(concat(reader.path(), ": ", reader.tensors().size(), " tensors, every digest matches, every number is finite"));
  return 0;
}

int diff(const std::string& path_a, const std::string& path_b, double rtol) {
  const CheckpointReader a = open_checkpoint(path_a), b = open_checkpoint(path_b);
  const auto differences = compare_checkpoints(a, b);
  double largest = 0;
  size_t beyond = 0;
  for (const TensorDifference& d : differences) {
    largest = std::max(largest, d.relative_rms);
    if (rtol > 0 && d.relative_rms <= rtol) continue;
    if (++beyond <= kShownDifferences) say(d.name + ": " + d.what);
  }
  std::printf("%zu and %zu tensors, %zu not bit-equal, largest relative RMS difference %.3g, %zu beyond the bound\n",
              a.tensors().size(), b.tensors().size(), differences.size(), largest, beyond);
  return beyond == 0 ? 0 : 1;
}

}  // namespace

void add_ckpt_command(CLI::App& app, Action& action) {
  struct Options {
    std::string a, b;
    double rtol = 0;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("ckpt", "Show, check and compare checkpoints");
  command->require_subcommand(1);
  const std::string what = "checkpoint folder, or run folder (its newest checkpoint)";

  CLI::App* inspect_command = command->add_subcommand("inspect", "Step, layout, size and build of a checkpoint");
  inspect_command->add_option("checkpoint", options->a, what)->required();
  inspect_command->callback([options, &action] { action = [options] { return inspect(options->a); }; });

  CLI::App* verify_command = command->add_subcommand("verify", "Check every digest and that every number is finite");
  verify_command->add_option("checkpoint", options->a, what)->required();
  verify_command->callback([options, &action] { action = [options] { return verify(options->a); }; });

  CLI::App* diff_command =
      command->add_subcommand("diff", "Compare two checkpoints tensor by tensor; exit 1 if they differ");
  diff_command->add_option("a", options->a, what)->required();
  diff_command->add_option("b", options->b, what)->required();
  diff_command->add_option("--rtol", options->rtol, "relative RMS difference allowed per tensor; 0 = the same bits")
      ->check(CLI::NonNegativeNumber);
  diff_command->callback(
      [options, &action] { action = [options] { return diff(options->a, options->b, options->rtol); }; });
}

}  // namespace braid
