#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>

#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/config/config_reader.h"
#include "trainer/datasets.h"
#include "trainer/evaluation.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

// Says on stderr how much is evaluated and, while it lasts, every few seconds how much is done.
class Progress {
 public:
  Progress(const TokenDataset& data, int64_t sequences, bool is_shown) : name_(data.name()), is_shown_(is_shown) {
    if (!is_shown || data.size() == 0) return;
    const int64_t rows = sequences > 0 ? std::min(sequences, data.size()) : data.size();
    std::fprintf(stderr, "%s: %lld of %lld held-out sequences\n", name_.c_str(), static_cast<long long>(rows),
                 static_cast<long long>(data.size()));
  }
  void show(int64_t rows, int64_t all_rows) {
    const auto now = Clock::now();
    if (!is_shown_ || rows == all_rows || now - shown_at_ < std::chrono::seconds(3)) return;
    shown_at_ = now;
    std::fprintf(stderr, "%s: %lld of %lld done\n", name_.c_str(), static_cast<long long>(rows),
                 static_cast<long long>(all_rows));
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::string name_;
  bool is_shown_;
  Clock::time_point shown_at_ = Clock::now();
};

}  // namespace

void add_eval_command(CLI::App& app, Action& action) {
  struct Options {
    std::string model;
    int64_t sequences = -1;
    int64_t expert = 1;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "Held-out loss of a trained model on its run's data");
  command->add_option("model", options->model, "run folder or checkpoint folder")->required();
  command->add_option("--sequences", options->sequences, "held-out sequences per source, the run's eval.sequences if not given; 0 = all");
  command->add_option("--expert", options->expert, "expert parallel size");
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &action] {
    action = [options] {
      TrainedModel trained = open_trained_model(options->model);
      RunConfig& config = trained.config;
      use_default_threads();
      const std::unique_ptr<Machine> machine = open_machine(config);
      Context& ctx = machine->ctx;
      const ProcessMesh mesh(std::move(machine->world), options->expert, config.model.num_experts);
      const int64_t B = config.train.micro_batch_size;
      InferenceState state(ctx, config, mesh, B, config.train.seq_length);
      state.load(ctx, trained.reader);

      std::vector<Evaluation> evaluations;
      const int64_t sequences = options->sequences >= 0 ? options->sequences : config.eval.sequences;
      for (const TokenDataset& data : open_datasets(config, Split::kValidation)) {
        Progress progress(data, sequences, mesh.rank() == 0 && !options->json);
        evaluations.push_back(evaluate(ctx, state.model, mesh, data, B, sequences,
                                       [&](int64_t rows, int64_t all_rows) { progress.show(rows, all_rows); }));
        const Evaluation& e = evaluations.back();
        if (mesh.rank() != 0 || options->json) continue;
        if (e.targets == 0) std::printf("%s: no held-out documents\n", e.name.c_str());
        else
          std::printf(
              "%s: held-out loss %.4f nats per token (perplexity %.2f), unigram entropy of the same tokens %.4f, "
              "%lld tokens\n",
              e.name.c_str(), e.loss, std::exp(e.loss), e.unigram_entropy, static_cast<long long>(e.targets));
      }
      if (mesh.rank() == 0 && options->json) {
        MetricsLine line = validation_line(trained.reader.info().step, evaluations);
        for (const Evaluation& e : evaluations) {
          line.set("val/" + e.name + "/unigram_entropy", e.unigram_entropy);
          line.set("val/" + e.name + "/tokens", e.targets);
        }
        std::printf("%s\n", line.to_json().c_str());
      }
      return 0;
    };
  });
}

}  // namespace braid
