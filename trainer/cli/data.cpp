#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "data/corpus/dataset_manifest.h"
#include "data/corpus/text_input.h"
#include "data/token_dataset.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/print.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// The newest of the installed C++ standard headers: several MB of real text on every machine that can build Braid.
// Older ones beside it are nearly the same, so what is held out of one would be trained on in the other.
std::string default_text() {
  const char* root = "/usr/include/c++";
  std::error_code error;
  std::pair<int, std::string> newest{-1, ""};
  for (const fs::directory_entry& entry : fs::directory_iterator(root, error))
    if (entry.is_directory(error))
      newest = std::max(newest, {std::atoi(entry.path().filename().c_str()), entry.path()});
  check<DataError>(newest.first >= 0, root,
                   ": no C++ standard headers here to make text from; install g++, or name text "
                   "files or folders with --text");
  return newest.second;
}

struct ShardStatistics {
  int64_t shortest = 0, median = 0, longest = 0;  // tokens of a document
  double unigram_entropy = 0;                     // nats per token
};

// Reads every token of a shard, so it also checks them.
ShardStatistics scan(const TokenShard& shard) {
  ShardStatistics result;
  std::vector<int64_t> histogram;  // grows with the ids: a vocabulary may be declared far larger than it is
  std::vector<uint32_t> block(1 << 20);
  const int64_t num_tokens = shard.info().num_tokens;
  for (int64_t begin = 0; begin < num_tokens; begin += static_cast<int64_t>(block.size())) {
    const int64_t end = std::min(begin + static_cast<int64_t>(block.size()), num_tokens);
    shard.read(begin, end, block.data());
    for (int64_t i = 0; i < end - begin; ++i) {
      if (block[i] >= histogram.size()) histogram.resize(block[i] + size_t{1});
      ++histogram[block[i]];
    }
  }
  for (int64_t count : histogram) {
    const double p = double(count) / double(num_tokens);
    if (count > 0) result.unigram_entropy -= p * std::log(p);
  }

  std::vector<int64_t> lengths;
  const auto& offsets = shard.document_offsets();
  for (size_t d = 0; d + 1 < offsets.size(); ++d) lengths.push_back(offsets[d + 1] - offsets[d]);
  std::sort(lengths.begin(), lengths.end());
  if (!lengths.empty()) {
    result.shortest = lengths.front();
    result.median = lengths[lengths.size() / 2];
    result.longest = lengths.back();
  }
  return result;
}

int demo(const std::string& out, std::vector<std::string> text) {
  if (text.empty()) text = {default_text()};
  const InputList inputs = list_inputs(text);
  std::error_code error;
  fs::create_directories(out, error);
  check<IoError>(!error, out, ": cannot be created: ", error.message());
  const std::string path = (fs::path(out) / "train.h5").string();
  const ShardInfo info = tokenize_files(paths_of(inputs), path);
  if (inputs.met_again > 0) print_line(inputs.met_again, " files were met twice and taken once");
  const double entropy = scan(TokenShard(path)).unigram_entropy;
  std::printf("%s: %s, unigram entropy %.4f nats per token\n", path.c_str(),
              concat(info.num_documents, " documents, ", info.num_tokens, " tokens").c_str(), entropy);
  return 0;
}

// Text of unknown origin as it can be shown: valid UTF-8 without control characters.
std::string printable(const std::string& text) {
  const auto replace = nlohmann::json::error_handler_t::replace;
  const auto valid = nlohmann::json::parse(nlohmann::json(text).dump(-1, ' ', false, replace)).get<std::string>();
  std::string out;
  for (size_t i = 0; i < valid.size(); ++i) {
    const auto byte = static_cast<unsigned char>(valid[i]);
    const bool is_c1_control = byte == 0xC2 && static_cast<unsigned char>(valid[i + 1]) < 0xA0;
    if (byte == '\n') out += "\n    ";
    else if (is_c1_control) out += '?', ++i;
    else out += (byte < 0x20 && byte != '\t') || byte == 0x7F ? '?' : valid[i];
  }
  return out;
}

std::string first_text(const TokenShard& shard) {
  constexpr int64_t kShownTokens = 400;
  if (shard.info().tokenizer_digest != ByteTokenizer().digest() || shard.info().num_documents == 0) return "";
  std::vector<uint32_t> tokens(std::min(shard.document_offsets()[1], kShownTokens));
  shard.read(0, static_cast<int64_t>(tokens.size()), tokens.data());
  return ByteTokenizer().decode(tokens);
}

nlohmann::ordered_json to_json(const ShardInfo& info, const ShardStatistics& s) {
  return {{"path", info.path},
          {"documents", info.num_documents},
          {"tokens", info.num_tokens},
          {"token_bytes", info.token_bytes},
          {"vocab_size", info.vocab_size},
          {"end_of_document", info.end_of_document},
          {"tokenizer", info.tokenizer},
          {"tokenizer_digest", info.tokenizer_digest},
          {"source_digest", info.source_digest},
          {"length_min", s.shortest},
          {"length_median", s.median},
          {"length_max", s.longest},
          {"unigram_entropy", s.unigram_entropy}};
}

int inspect(const std::vector<std::string>& paths, bool json) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    const bool is_dataset = fs::exists(fs::path(path) / "dataset.json");
    for (const std::string& shard : is_dataset ? dataset_shards(path) : paths_of(list_inputs({path}, ".h5")))
      files.push_back(shard);
  }
  for (const std::string& file : files) {
    const TokenShard shard(file);
    const ShardInfo& info = shard.info();
    const ShardStatistics s = scan(shard);
    if (json) {
      print_json(to_json(info, s));
      continue;
    }
    std::printf("%s\n  %s\n  %s\n  %s\n  unigram entropy %.4f nats per token\n", file.c_str(),
                concat(info.num_documents, " documents, ", info.num_tokens, " tokens of ", info.token_bytes,
                       " bytes, all inside the vocabulary of ", info.vocab_size)
                    .c_str(),
                concat("tokens per document: ", s.shortest, " to ", s.longest, ", median ", s.median,
                       "; each ends with id ", info.end_of_document)
                    .c_str(),
                printable("tokenizer " + info.tokenizer + ", digest " + info.tokenizer_digest).c_str(),
                s.unigram_entropy);
    if (const std::string text = first_text(shard); !text.empty())
      std::printf("  the first document begins with\n    %s\n", printable(text).c_str());
  }
  return 0;
}

}  // namespace

void add_data_command(Command app) {
  struct Options {
    std::string out;
    std::vector<std::string> text, files;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("data", "Make, inspect and check datasets and token shards").needs_command();

  const Command demo_command = command.command("demo", "Make a token shard from text with the byte tokenizer");
  demo_command.option("--out", options->out, "folder for train.h5").required();
  demo_command
      .option("--text", options->text, "text file or folder, repeatable; default: the installed C++ standard headers")
      .one_at_a_time();
  demo_command.runs([options] { return demo(options->out, options->text); });

  const Command inspect_command = command.command("inspect", "Show shards and check every token id");
  inspect_command.option("files", options->files, "HDF5 token shards, or folders of them").required();
  inspect_command.flag("--json", options->json, "one JSON object per shard");
  inspect_command.runs([options] { return inspect(options->files, options->json); });
  add_tokenize_commands(command);
  add_convert_commands(command);
  add_replay_command(command);
}

}  // namespace braid
