#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/batch_stream.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/cli/arguments.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/datasets.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct Options {
  ConfigArguments config;
  int64_t step = 0, steps = 1;
  bool json = false;
};

// The rows of a step, one line for every piece of a document in them, in the order in which training has them.
void print_step(const std::vector<TokenDataset>& datasets, const BatchPlan& plan, int64_t step, bool json) {
  const int64_t first = plan.global_batch_size.rows_of_first(step - 1);
  for (int64_t row = 0; row < plan.global_batch_size.rows_after(step - 1); ++row) {
    const PlannedRow planned = planned_row(datasets, plan, first + row);
    const TokenDataset& dataset = datasets[planned.source];
    for (const TokenDataset::RowPiece& piece : dataset.pieces_of_row(planned.row)) {
      const std::string& shard = dataset.shards()[piece.shard].info().path;
      if (json) {
        const nlohmann::ordered_json line = {{"step", step},
                                             {"row", row},
                                             {"source", dataset.name()},
                                             {"epoch", planned.epoch},
                                             {"shard", shard},
                                             {"document", piece.document},
                                             {"offset", piece.offset},
                                             {"tokens", piece.tokens}};
        print_json(line);
      } else {
        print_line(step, '\t', row, '\t', dataset.name(), '\t', planned.epoch, '\t', shard, '\t', piece.document, '\t',
                   piece.offset, '\t', piece.tokens);
      }
    }
  }
}

// Of a run those that its newest checkpoint knows, as they may have changed on the way.
BatchSizes batch_sizes_so_far(const fs::path& run, const RunConfig& config) {
  const auto checkpoints = branch_checkpoints((run / "checkpoints").string());
  if (checkpoints.empty()) return batch_sizes_of(config);
  const CheckpointReader newest(checkpoints.front().path);
  BatchSizes sizes = batch_sizes_of(newest.info(), read_config_text(newest.info().config_yaml, newest.path()));
  go_on_with(sizes, newest.info().step, config);
  return sizes;
}

int replay(const Options& options) {
  const RunConfig config = read_any_config(options.config.path, options.config.overrides);
  check_config(config);
  check<ConfigError>(options.step - 1 + options.steps <= config.run.steps, "--step ", options.step, " --steps ",
                     options.steps, " is outside the ", config.run.steps, " steps of the run");
  prepare_shards(config.data, config.run.dir, ShardsOnDisk::kKeep);
  const std::vector<TokenDataset> datasets = open_datasets(config).train;
  const BatchPlan plan = batch_plan(config, batch_sizes_so_far(options.config.path, config));
  if (!options.json) print_line("step\trow\tsource\tepoch\tshard\tdocument\toffset\ttokens");
  for (int64_t step = options.step; step < options.step + options.steps; ++step)
    print_step(datasets, plan, step, options.json);
  check<IoError>(std::fflush(stdout) == 0, "the rows cannot be written to the output");
  return 0;
}

}  // namespace

void add_replay_command(Command data) {
  auto options = std::make_shared<Options>();
  const Command command = data.command(
      "replay", "Print the very rows of a training step: source, shard, document, offset in the document, tokens");
  add_config(command, options->config, "YAML config or run folder").required();
  command.option("--step", options->step, "step, counted from 1 as in metrics.jsonl").required().whole(1);
  command.option("--steps", options->steps, "how many steps to print from there").whole(1);
  command.flag("--json", options->json, "one JSON object per line");
  command.runs([options] { return replay(*options); });
}

}  // namespace braid
