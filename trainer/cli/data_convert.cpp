#include <filesystem>
#include <memory>

#include "data/corpus/convert.h"
#include "data/corpus/megatron.h"
#include "data/corpus/merge.h"
#include "kernels/core/error.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"

namespace braid {
namespace {

void print_made(const std::string& path, const DatasetManifest& m) {
  print_line(path, ": ", m.num_documents(), " documents, ", m.num_tokens(), " tokens in ", m.shards.size(),
             " shards, vocabulary of ", m.vocab_size, ", documents end with id ", m.end_of_document);
}

struct ConvertCommand {
  ConvertOptions options;
  std::string tokenizer;
  int64_t end_of_document = -1, vocab_size = -1;
};

int convert(const ConvertCommand& command) {
  ConvertOptions options = command.options;
  const std::string ending = std::filesystem::path(options.to).extension();
  if (ending == ".idx" || ending == ".bin") {
    check<ConfigError>(
        options.dtype.empty() && command.tokenizer.empty() && command.end_of_document < 0 && command.vocab_size < 0,
        "--to ", options.to, " writes Megatron's files of a dataset, which says all else itself");
    const DatasetManifest m = write_megatron(options.from, options.to);
    print_line(options.to, ": ", m.num_documents(), " documents, ", m.num_tokens(), " tokens, each ends with id ",
               m.end_of_document);
    return 0;
  }
  check<ConfigError>(
      !std::filesystem::exists(manifest_path(options.from)), options.from,
      ": is a dataset already; --to NAME.idx writes Megatron's files of it, `braid data merge` copies it");
  std::unique_ptr<Tokenizer> tokenizer;
  if (!command.tokenizer.empty()) tokenizer = open_tokenizer(command.tokenizer);
  options.tokenizer = tokenizer.get();
  if (command.end_of_document >= 0) options.end_of_document = command.end_of_document;
  if (command.vocab_size >= 0) options.vocab_size = command.vocab_size;
  print_made(manifest_path(options.to), convert_tokens(options));
  return 0;
}

struct Options {
  std::vector<std::string> from;
  SplitOptions split;
};

int merge(const Options& options) {
  print_made(manifest_path(options.split.to),
             merge_datasets(options.from, options.split.to, options.split.shard_tokens));
  return 0;
}

int split(const SplitOptions& options) {
  check<ConfigError>((options.parts > 0) != (options.held_out > 0), "split needs either --parts or --held-out");
  for (const SplitPart& part : split_dataset(options)) print_made(manifest_path(part.folder), part.manifest);
  return 0;
}

void add_shard_tokens(Command command, int64_t& shard_tokens) {
  command.option("--shard-tokens", shard_tokens, "a shard ends with the document that reaches these tokens")
      .whole(1, int64_t{1} << 40)
      .show_default();
}

}  // namespace

void add_convert_commands(Command data) {
  auto command_of = std::make_shared<ConvertCommand>();
  const Command convert_command =
      data.command("convert", "Make a dataset of tokens of others, or Megatron's files of a dataset");
  convert_command
      .option("--from", command_of->options.from,
              "HDF5 of any kind, Megatron's .idx or .bin, datatrove's, llm.c's .bin, .npy, raw tokens; or a dataset")
      .required();
  convert_command
      .option("--to", command_of->options.to, "folder to make; may not hold anything yet; or Megatron's NAME.idx")
      .required();
  convert_command.option("--dtype", command_of->options.dtype, "of raw tokens").one_of({"u16", "u32"});
  convert_command.option("--tokenizer", command_of->tokenizer, "that made the tokens: bytes, or a tokenizer.json");
  convert_command.option("--end-of-document", command_of->end_of_document, "id that ends documents")
      .whole(0, (int64_t{1} << 32) - 1);
  convert_command.option("--vocab-size", command_of->vocab_size, "default: largest id + 1").whole(1, int64_t{1} << 32);
  add_shard_tokens(convert_command, command_of->options.shard_tokens);
  convert_command.runs([command_of] { return convert(*command_of); });

  auto options = std::make_shared<Options>();
  const Command merge_command = data.command("merge", "Make one dataset of the documents of several");
  merge_command.option("from", options->from, "datasets, in this order; also shards without a dataset.json").required();
  merge_command.option("--out", options->split.to, "folder to make; may not hold anything yet").required();
  add_shard_tokens(merge_command, options->split.shard_tokens);
  merge_command.runs([options] { return merge(*options); });

  const Command split_command = data.command("split", "Make several datasets of the documents of one");
  split_command.option("from", options->split.from, "dataset, or shards without a dataset.json").required();
  split_command.option("--out", options->split.to, "folder to make; may not hold anything yet").required();
  split_command
      .option("--parts", options->split.parts, "part-00000 and on: documents in order, about as many tokens in each")
      .whole(2, 99999);
  split_command
      .option("--held-out", options->split.held_out, "instead: train and held-out, this share of the documents")
      .number(1e-9, 0.999);
  add_shard_tokens(split_command, options->split.shard_tokens);
  split_command.runs([options] { return split(options->split); });
}

}  // namespace braid
