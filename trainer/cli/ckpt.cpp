#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>

#include "kernels/core/durable_file.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_scan.h"
#include "trainer/cli/commands.h"
#include "trainer/huggingface/export.h"
#include "trainer/huggingface/import.h"
#include "trainer/run_tokenizer.h"

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

// The bound of import and export, said before they start; how fast they were, once they are done.
void convert_model(const std::function<void()>& body) {
  say(concat("memory bound: ", kConversionMemoryBytes >> 20, " MiB"));
  const auto start = std::chrono::steady_clock::now();
  body();
  std::printf("done in %.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

int import_from(const std::string& from, const std::string& to, NonFinite non_finite) {
  convert_model([&] {
    const HuggingFaceReader source(from, non_finite);
    say(concat(from, ": ", source.parameters().size(), " parameters, ", source.has_mtp() ? "with" : "without",
               " an MTP block, ", source.total_bytes(), " bytes"));
    import_model(source, to);
    say(to + ": a checkpoint with these weights; train from it with init.from");
  });
  return 0;
}

int export_to(const std::string& from, const std::string& to, const std::string& dtype) {
  convert_model([&] {
    const CheckpointReader source = open_checkpoint(from);
    std::optional<DType> wanted;
    if (!dtype.empty()) wanted = dtype == "bf16" ? DType::kBF16 : DType::kF32;
    const auto tokenizer = run_tokenizer(source.path());
    export_model(source, to, wanted);
    if (!tokenizer->file().empty()) write_file_atomically(to + "/tokenizer.json", tokenizer->file());
    say(concat(to, ": the weights of ", source.path(), " as a Hugging Face folder"));
  });
  return 0;
}

}  // namespace

void add_ckpt_command(CLI::App& app, Action& action) {
  struct Options {
    std::string a, b, dtype;
    double rtol = 0;
    bool allow_nonfinite = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("ckpt", "Show, check, compare, import and export checkpoints");
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

  CLI::App* import_command = command->add_subcommand(
      "import", "Make a checkpoint from a Hugging Face folder: its weights alone, to train from (init.from) or use");
  import_command->add_option("--from", options->a, "folder with config.json and safetensors files")->required();
  import_command->add_option("--to", options->b, "checkpoint folder to make; may not hold anything yet")->required();
  import_command->add_flag("--allow-nonfinite", options->allow_nonfinite, "take weights that are NaN or infinite");
  import_command->callback([options, &action] {
    action = [options] {
      return import_from(options->a, options->b, options->allow_nonfinite ? NonFinite::kAllow : NonFinite::kRefuse);
    };
  });

  CLI::App* export_command = command->add_subcommand("export", "Write a checkpoint's weights as a Hugging Face folder");
  export_command->add_option("--from", options->a, what)->required();
  export_command->add_option("--to", options->b, "folder to make; may not hold anything yet")->required();
  export_command->add_option("--dtype", options->dtype, "of all tensors; without it, each as the checkpoint has it")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  export_command->callback(
      [options, &action] { action = [options] { return export_to(options->a, options->b, options->dtype); }; });
}

}  // namespace braid
