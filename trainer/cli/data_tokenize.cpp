#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "data/corpus/documents.h"
#include "data/corpus/text_input.h"
#include "data/corpus/tokenize_corpus.h"
#include "data/token_dataset.h"
#include "data/token_shard.h"
#include "data/tokenizer/bpe_trainer.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/process_info.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"
#include "trainer/metrics/progress_bar.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct TokenizeOptions {
  std::string tokenizer, end_of_document;
  CorpusOptions corpus;
};

int tokenize(const TokenizeOptions& options) {
  const auto tokenizer = open_tokenizer(options.tokenizer, options.end_of_document);
  const auto begin = Clock::now();
  CorpusReport report;
  {
    ProgressBar bar("");
    int64_t bytes_before = -1;  // of an earlier start, which are no speed
    report = tokenize_corpus(*tokenizer, options.corpus, [&](const CorpusProgress& p) {
      if (bytes_before < 0) bytes_before = p.bytes;
      bar.show(p.bytes, p.all_bytes,
               fmt::format("{} documents, {:.2f} million tokens, {:.1f} MB/s", p.documents, double(p.tokens) / 1e6,
                           double(p.bytes - bytes_before) / 1e6 / std::max(1e-3, bar.seconds())));
    });
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const DatasetManifest& m = report.manifest;
  for (const std::string& complaint : report.complaints) print_note(complaint);
  const std::string path = manifest_path(options.corpus.out);
  if (report.was_complete) print_line(path, ": is complete already");
  if (report.documents_before > 0)
    print_line(path, ": went on behind ", report.documents_before, " documents of an earlier start");
  print_line(path, ": ", m.num_documents(), " documents, ", m.num_tokens(), " tokens in ", m.shards.size(), " shards, ",
             m.unreadable, " records unreadable, ", m.repaired, " places not UTF-8, ", m.met_again, " files met twice");
  if (!report.was_complete) std::printf("%.1f s with %d jobs\n", seconds, options.corpus.jobs);
  return 0;
}

// "A:B", "A:", ":B": documents [A, B).
std::pair<int64_t, int64_t> parse_range(const std::string& text, int64_t size) {
  if (text.empty()) return {0, size};
  const size_t colon = text.find(':');
  const auto number = [&](const std::string& part, int64_t otherwise) {
    if (part.empty()) return otherwise;
    int64_t value = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    check<ConfigError>(error == std::errc() && end == part.data() + part.size() && value >= 0, "--documents is '", text,
                       "', expected A:B, two counts");
    return value;
  };
  check<ConfigError>(colon != text.npos, "--documents is '", text, "', expected A:B, two counts");
  const int64_t begin = number(text.substr(0, colon), 0), end = number(text.substr(colon + 1), size);
  check<ConfigError>(begin <= end, "--documents is ", text, ", which ends before it begins");
  check<ConfigError>(end <= size, "--documents is ", text, ", but there are ", size, " documents");
  return {begin, end};
}

int dump(const std::string& path, const std::string& documents) {
  const std::vector<std::string> paths = fs::is_directory(path) ? dataset_shards(path) : std::vector<std::string>{path};
  std::vector<TokenShard> shards;
  int64_t size = 0;
  for (const std::string& shard : paths) shards.emplace_back(shard), size += shards.back().info().num_documents;
  const auto [begin, end] = parse_range(documents, size);
  std::string text;
  bool is_first = true;  // id of its line
  const auto print = [&] {
    check<IoError>(std::fwrite(text.data(), 1, text.size(), stdout) == text.size(),
                   "the ids cannot be written to the output");
    text.clear();
  };
  int64_t first = 0;
  for (const TokenShard& shard : shards) {
    const int64_t count = shard.info().num_documents, end_id = shard.info().end_of_document;
    for_document_pieces(shard, std::clamp<int64_t>(begin - first, 0, count), std::clamp<int64_t>(end - first, 0, count),
                        [&](std::span<const uint32_t> ids, bool is_end) {
                          if (is_end && !ids.empty() && ids.back() == end_id) ids = ids.first(ids.size() - 1);
                          for (const uint32_t id : ids) {
                            if (!is_first) text += ' ';
                            text += std::to_string(id);
                            is_first = false;
                          }
                          if (is_end) text += '\n', is_first = true;
                          if (text.size() > size_t{1} << 16) print();
                        });
    first += count;
  }
  print();
  check<IoError>(std::fflush(stdout) == 0, "the ids cannot be written to the output");
  return 0;
}

int verify(const std::string& folder) {
  const std::vector<std::string> wrong = verify_dataset(folder);
  for (const std::string& sentence : wrong) print_line(sentence);
  check<DataError>(wrong.empty(), folder, ": the dataset is damaged, ", wrong.size(), " finding",
                   wrong.size() == 1 ? "" : "s");
  const DatasetManifest m = read_manifest(folder);
  print_line(folder, ": all bytes of ", m.shards.size(), " shards are as they were written: ", m.num_documents(),
             " documents, ", m.num_tokens(), " tokens");
  return 0;
}

int train_tokenizer(const std::vector<std::string>& paths, const std::string& text_key, int64_t vocab_size,
                    const std::string& out) {
  create_folder(fs::absolute(out).parent_path().string());  // before hours of reading
  BpeTrainer trainer;
  int64_t documents = 0, unreadable = 0;
  for_each_text(
      list_inputs(paths), text_key,
      [&](std::string_view text) {
        trainer.add(text);
        ++documents;
      },
      [&](const std::string& complaint) {
        if (++unreadable <= 20) print_note(complaint);
      });
  check<DataError>(trainer.num_words() > 0, "the inputs hold no text to learn a vocabulary from");
  const BpeTrainer::Result result = trainer.train(vocab_size);
  write_output(out, result.json);
  print_line(out, ": ", result.vocab_size, " ids from ", trainer.num_words(), " different words of ", documents,
             " documents, ", unreadable, " records unreadable");
  if (result.vocab_size < vocab_size) print_line(out, ": the text has no pairs for the ", vocab_size, " ids asked for");
  return 0;
}

}  // namespace

void add_tokenize_commands(Command data) {
  auto tokenize_options = std::make_shared<TokenizeOptions>();
  CorpusOptions& corpus = tokenize_options->corpus;
  corpus.jobs = usable_cores();
  const Command command = data.command("tokenize", "Make a dataset from text: JSON lines or plain, also .gz and .zst");
  command.option("input", corpus.inputs, "files, folders, or - for JSON lines on standard input").required();
  command.option("--tokenizer", tokenize_options->tokenizer, "bytes, or a tokenizer.json of Hugging Face").required();
  command.option("--out", corpus.out, "folder for dataset.json and the shards").required();
  command.option("--text-key", corpus.text_key, "key of the text in a JSON line").show_default();
  command.option("--shard-tokens", corpus.shard_tokens, "a shard ends with the document that reaches these tokens")
      .whole(1, int64_t{1} << 40)
      .show_default();
  command.option("--jobs", corpus.jobs, "threads that tokenize; default: the cores of this process").whole(1, 4096);
  command.option("--end-of-document", tokenize_options->end_of_document,
                 "token behind every document; default: <|endoftext|> or another usual one");
  command.runs([tokenize_options] { return tokenize(*tokenize_options); });

  struct Options {
    std::string path, documents, text_key = "text", out;
    std::vector<std::string> inputs;
    int64_t vocab_size = 0;
  };
  auto options = std::make_shared<Options>();
  const Command dump_command =
      data.command("dump", "Print token ids, a document per line, without the end-of-document id");
  dump_command.option("path", options->path, "shard, or folder of a dataset").required();
  dump_command.option("--documents", options->documents, "A:B, documents A to B - 1; default: all");
  dump_command.runs([options] { return dump(options->path, options->documents); });

  const Command train_command = data.command("train-tokenizer", "Learn a byte-level BPE vocabulary from text");
  train_command.option("input", options->inputs, "files, folders, or -, as for tokenize").required();
  train_command.option("--vocab-size", options->vocab_size, "ids, the 256 bytes and <|endoftext|> included")
      .required()
      .whole(257, 1 << 24);
  train_command.option("--out", options->out, "tokenizer.json to write").required();
  train_command.option("--text-key", options->text_key, "key of the text in a JSON line").show_default();
  train_command.runs(
      [options] { return train_tokenizer(options->inputs, options->text_key, options->vocab_size, options->out); });

  const Command verify_command = data.command("verify", "Compare every byte of a dataset with its digests");
  verify_command.option("folder", options->path, "folder of a dataset").required();
  verify_command.runs([options] { return verify(options->path); });
}

}  // namespace braid
