#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/corpus/dataset_manifest.h"
#include "data/corpus/tokenize_corpus.h"
#include "kernels/core/error.h"
#include "kernels/core/temporary_folder.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/cli/session.h"
#include "trainer/config/config_reader.h"
#include "trainer/datasets.h"
#include "trainer/evaluation.h"
#include "trainer/metrics/progress_bar.h"
#include "trainer/passkey.h"
#include "trainer/run_tokenizer.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// What --data names, whole: a dataset, token shards, a folder of them, or text, which is tokenized into `scratch`.
TokenDataset open_named(const std::string& path, const RunConfig& config, const Tokenizer& tokenizer,
                        const TemporaryFolder& scratch, size_t number) {
  check<DataError>(fs::exists(path), path, ": does not exist");
  const std::string name = fs::path(path).lexically_normal().has_filename()
                               ? fs::path(path).filename().string()
                               : fs::path(path).lexically_normal().parent_path().filename().string();
  std::vector<std::string> shards;
  if (fs::exists(fs::path(path) / "dataset.json")) shards = dataset_shards(path);
  else if (fs::path(path).extension() == ".h5") shards = {path};
  else if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".h5") shards.push_back(entry.path().string());
    std::sort(shards.begin(), shards.end());
  }
  if (shards.empty()) {
    CorpusOptions options;
    options.inputs = {path};
    options.out = scratch / std::to_string(number);
    const CorpusReport report = tokenize_corpus(tokenizer, options, [](const CorpusProgress&) {});
    check<DataError>(report.complaints.empty(), report.complaints.empty() ? "" : report.complaints.front());
    check<DataError>(report.manifest.num_tokens() > report.manifest.num_documents(), path, ": holds no text");
    shards = dataset_shards(options.out);
  }
  TokenDataset data(name, shards, config.train.seq_length, Split::kTrain, 0);
  for (const TokenShard& shard : data.shards()) {
    const ShardInfo& info = shard.info();
    check<DataError>(info.tokenizer_digest == tokenizer.digest(), info.path, ": was made with tokenizer ",
                     info.tokenizer, " ", info.tokenizer_digest, ", but the model speaks ", tokenizer.name(), " ",
                     tokenizer.digest(), "; --tokenizer names another");
    check<DataError>(info.vocab_size <= config.model.vocab_size, info.path, ": its vocabulary of ", info.vocab_size,
                     " ids does not fit model.vocab_size ", config.model.vocab_size);
  }
  return data;
}

// Whether the model finds what a long text says once.
int eval_passkey(TrainedModel trained, const std::vector<int64_t>& lengths, int64_t trials, bool json) {
  TextModel text(std::move(trained));
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  const int64_t longest = text.state.model.config().max_position_embeddings;
  for (const int64_t length : lengths)
    check<ConfigError>(length <= longest, "--passkey ", length, " is more than the model's max_position_embeddings of ",
                       longest);
  for (const int64_t length : lengths) {
    std::string line;
    int64_t found = 0, all = 0;
    for (const double depth : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      const PasskeyScore score = passkey_score(text.ctx, text.state.model, *text.tokenizer, length, depth, trials, 1);
      found += score.found, all += score.trials;
      line += concat("  ", score.found, " at ", depth);
      rows.push_back({{"tokens", length}, {"depth", depth}, {"found", score.found}, {"trials", score.trials}});
    }
    if (!json) print_line("pass key in ", length, " tokens: ", found, " of ", all, " found;", line);
  }
  if (json) print_json(rows);
  return 0;
}

}  // namespace

void add_eval_command(Command app) {
  struct Options {
    std::string model;
    int64_t sequences = -1;
    int64_t expert = 1, context = 1;
    bool json = false;
    std::vector<int64_t> passkey;
    int64_t trials = 5;
    std::vector<std::string> data;
    std::string tokenizer;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("eval", "Held-out loss of a model on its run's data, or loss on other data");
  command.option("model", options->model, "run folder or checkpoint folder").required();
  const Option sequences =
      command
          .option("--sequences", options->sequences,
                  "sequences per source; if not given the run's eval.sequences, or all of --data; 0 = all")
          .whole(0);
  const Option data =
      command
          .option(
              "--data", options->data,
              "evaluate on this instead, whole: a text, JSON lines, a dataset, a token shard, or a folder; repeatable")
          .one_at_a_time();
  command.option("--tokenizer", options->tokenizer,
                 "of --data: bytes or a tokenizer.json; if not given that of the model's run");
  command.option("--expert", options->expert, "expert parallel size").whole(1);
  command
      .option(
          "--passkey", options->passkey,
          "instead: hide a number in texts of so many tokens and ask for it at their end; on the CPU, in one process")
      .comma_separated()
      .whole(1, 1 << 30)
      .excludes(data)
      .excludes(sequences);
  command.option("--trials", options->trials, "of --passkey, for each of five places").whole(1, 1 << 20);
  command.option("--context", options->context, "ranks that share every row").whole(1);
  command.flag("--json", options->json, "print one JSON object");
  command.runs([options] {
    TrainedModel trained = open_trained_model(options->model);
    if (!options->passkey.empty())
      return eval_passkey(std::move(trained), options->passkey, options->trials, options->json);
    RunConfig& config = trained.config;
    config.parallel.context = options->context;
    check_context(config);
    use_default_threads();
    const std::unique_ptr<Machine> machine = open_machine(config);
    Context& ctx = machine->ctx;
    const ProcessMesh mesh(std::move(machine->world), options->expert, config.model.num_experts, options->context);
    const int64_t B = config.train.micro_batch_size;
    InferenceState state(ctx, config, mesh, B, config.train.seq_length);
    state.load(ctx, trained.reader);

    std::vector<Evaluation> evaluations;
    std::vector<TokenDataset> all;
    std::optional<TemporaryFolder> scratch;
    int64_t sequences = options->sequences >= 0 ? options->sequences : config.eval.sequences;
    if (options->data.empty()) {
      check<DataError>(options->tokenizer.empty(), "--tokenizer is for --data; a run has its own");
      check<DataError>(!config.data.sources.empty(), options->model,
                       ": names no data of its own, as it was not trained here; --data FILE evaluates it on that");
      Datasets own = open_datasets(config);
      if (mesh.rank() == 0 && !is_trained_on(trained.reader.info(), config, own))
        print_note("note: the data is no longer what the model was trained on");
      all = std::move(own.validation);
    } else {
      if (options->sequences < 0) sequences = 0;
      const auto tokenizer =
          options->tokenizer.empty() ? run_tokenizer(trained.reader.path()) : open_tokenizer(options->tokenizer);
      scratch.emplace();
      for (const std::string& path : options->data)
        all.push_back(open_named(path, config, *tokenizer, *scratch, all.size()));
    }
    for (const TokenDataset& data : all) {
      const bool is_shown = mesh.rank() == 0 && !options->json;
      if (is_shown && data.size() > 0)
        print_note(data.name(), ": ", sequences > 0 ? std::min(sequences, data.size()) : data.size(), " of ",
                   data.size(), " sequences");
      ProgressBar bar(data.name() + ": ", is_shown);
      evaluations.push_back(evaluate(ctx, state.model, mesh, data, B, sequences, [&](int64_t rows, int64_t all_rows) {
        bar.show(rows, all_rows, concat(rows, " of ", all_rows, " sequences"));
      }));
      const Evaluation& e = evaluations.back();
      if (mesh.rank() != 0 || options->json) continue;
      const char* kind = options->data.empty() ? "held-out loss" : "loss";
      if (e.targets == 0) print_line(e.name, ": no held-out documents");
      else
        print_line(fmt::format(
            "{}: {} {:.4f} nats per token (perplexity {:.2f}), unigram entropy of the same tokens {:.4f}, {} tokens",
            e.name, kind, e.loss, std::exp(e.loss), e.unigram_entropy, e.targets));
    }
    if (mesh.rank() == 0 && options->json) {
      MetricsLine line = validation_line(trained.reader.info().step, evaluations);
      for (const Evaluation& e : evaluations) {
        line.set("val/" + e.name + "/unigram_entropy", e.unigram_entropy);
        line.set("val/" + e.name + "/tokens", e.targets);
      }
      print_line(line.to_json());
    }
    return 0;
  });
}

}  // namespace braid
