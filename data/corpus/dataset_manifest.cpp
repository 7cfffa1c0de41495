#include "data/corpus/dataset_manifest.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/json_reason.h"
#include "data/token_shard.h"
#include "kernels/core/crc32c.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/raw_file.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "braid-dataset";
constexpr int kVersion = 1;

// A plain name: nothing in a manifest may lead out of its folder.
bool is_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == name.npos && name.find('\0') == name.npos;
}

int64_t sum(const std::vector<DatasetManifest::Shard>& shards, int64_t DatasetManifest::Shard::*count) {
  return std::accumulate(shards.begin(), shards.end(), int64_t{0},
                         [&](int64_t n, const auto& s) { return n + s.*count; });
}

template <class Block>
void for_blocks(const RawFile& file, Block&& block) {
  std::string buffer;
  for (int64_t at = 0; at < file.size(); at += DatasetManifest::kBlockBytes) {
    buffer.resize(std::min(DatasetManifest::kBlockBytes, file.size() - at));
    file.read(buffer.data(), static_cast<int64_t>(buffer.size()), at);
    block(at, buffer);
  }
}

}  // namespace

int64_t DatasetManifest::num_tokens() const { return sum(shards, &Shard::num_tokens); }
int64_t DatasetManifest::num_documents() const { return sum(shards, &Shard::num_documents); }

std::string manifest_path(const std::string& folder) { return (fs::path(folder) / "dataset.json").string(); }

std::string to_json(const DatasetManifest& m) {
  Json json = {{"format", kFormat},
               {"format_version", kVersion},
               {"tokenizer", m.tokenizer},
               {"tokenizer_digest", m.tokenizer_digest},
               {"tokenizer_file", m.tokenizer_file},
               {"vocab_size", m.vocab_size},
               {"end_of_document", m.end_of_document},
               {"tokens", m.num_tokens()},
               {"documents", m.num_documents()},
               {"source_digest", m.source_digest},
               {"unreadable", m.unreadable},
               {"repaired", m.repaired},
               {"met_again", m.met_again},
               {"block_bytes", DatasetManifest::kBlockBytes},
               {"shards", Json::array()}};
  for (const DatasetManifest::Shard& s : m.shards)
    json["shards"].push_back({{"file", s.file},
                              {"tokens", s.num_tokens},
                              {"documents", s.num_documents},
                              {"bytes", s.bytes},
                              {"sha256", s.sha256},
                              {"block_crc32c", s.block_crc32c}});
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_manifest(const std::string& folder, const DatasetManifest& manifest) {
  write_file_atomically(manifest_path(folder), to_json(manifest));
}

DatasetManifest read_manifest(const std::string& folder) {
  const std::string path = manifest_path(folder);
  std::error_code error;
  check<DataError>(fs::exists(folder, error), folder, ": does not exist");
  check<DataError>(fs::is_directory(folder, error), folder,
                   ": is a file, but a dataset is a folder that holds a dataset.json");
  check<DataError>(fs::is_regular_file(path, error), folder,
                   ": is no dataset: it holds no dataset.json; `braid data tokenize` "
                   "makes one");
  const RawFile file = RawFile::open(path);
  std::string text(file.size(), '\0');
  file.read(text.data(), file.size(), 0);
  return parse_manifest(text, path);
}

DatasetManifest parse_manifest(const std::string& text, const std::string& path) {
  DatasetManifest m;
  try {
    const Json json = Json::parse(text);
    check<DataError>(json.at("format") == kFormat, path, ": format is ", json.at("format").dump(), ", expected ",
                     kFormat);
    check<DataError>(json.at("format_version") == kVersion, path, ": format_version is ",
                     json.at("format_version").dump(), ", expected ", kVersion);
    check<DataError>(json.at("block_bytes") == DatasetManifest::kBlockBytes, path, ": block_bytes is ",
                     json.at("block_bytes").dump(), ", expected ", DatasetManifest::kBlockBytes);
    const auto count = [&](const Json& value, const char* name) {
      check<DataError>(value.at(name).is_number_unsigned() && value.at(name).get<uint64_t>() <= INT64_MAX, path, ": ",
                       name, " is ", value.at(name).dump(), ", expected a count");
      return value.at(name).get<int64_t>();
    };
    m.tokenizer = json.at("tokenizer");
    m.tokenizer_digest = json.at("tokenizer_digest");
    m.tokenizer_file = json.at("tokenizer_file");
    m.vocab_size = count(json, "vocab_size");
    m.end_of_document = count(json, "end_of_document");
    m.source_digest = json.at("source_digest");
    m.unreadable = count(json, "unreadable");
    m.repaired = count(json, "repaired");
    m.met_again = count(json, "met_again");
    for (const Json& entry : json.at("shards")) {
      DatasetManifest::Shard s{entry.at("file"),      count(entry, "tokens"), count(entry, "documents"),
                               count(entry, "bytes"), entry.at("sha256"),     entry.at("block_crc32c")};
      check<DataError>(is_file_name(s.file), path, ": the shard name ", s.file, " is not the name of a file");
      m.shards.push_back(std::move(s));
    }
    check<DataError>(m.tokenizer_file.empty() || is_file_name(m.tokenizer_file), path, ": tokenizer_file ",
                     m.tokenizer_file, " is not the name of a file");
    for (const char* name : {"tokens", "documents"}) {
      const int64_t all = std::string_view(name) == "tokens" ? m.num_tokens() : m.num_documents();
      check<DataError>(count(json, name) == all, path, ": ", name, " is ", count(json, name), ", but its shards have ",
                       all);
    }
  } catch (const Json::exception& e) {
    throw DataError(concat(path, ": is damaged: ", json_reason(e)));
  }
  return m;
}

DatasetManifest::Shard describe_shard(const std::string& folder, const std::string& file) {
  const std::string path = (fs::path(folder) / file).string();
  const TokenShard shard(path);
  const RawFile raw = RawFile::open(path);
  DatasetManifest::Shard entry{file, shard.info().num_tokens, shard.info().num_documents, raw.size(), "", {}};
  Sha256 digest;
  for_blocks(raw, [&](int64_t, const std::string& block) {
    digest.update(block.data(), block.size());
    entry.block_crc32c.push_back(crc32c(block.data(), block.size()));
  });
  entry.sha256 = digest.hex();
  return entry;
}

std::vector<std::string> dataset_shards(const std::string& folder) {
  std::vector<std::string> paths;
  for (const DatasetManifest::Shard& s : read_manifest(folder).shards) {
    paths.push_back((fs::path(folder) / s.file).string());
    std::error_code error;
    const auto bytes = fs::file_size(paths.back(), error);
    check<DataError>(!error, paths.back(), ": cannot be read, though ", manifest_path(folder),
                     " names it: ", error.message());
    check<DataError>(static_cast<int64_t>(bytes) == s.bytes, paths.back(), ": has ", bytes, " bytes, but ",
                     manifest_path(folder), " says ", s.bytes);
  }
  check<DataError>(!paths.empty(), folder, ": the dataset has no shards");
  return paths;
}

std::vector<std::string> verify_dataset(const std::string& folder) {
  const DatasetManifest manifest = read_manifest(folder);
  std::vector<std::string> wrong;
  const auto verify = [&](const DatasetManifest::Shard& s) {
    const std::string path = (fs::path(folder) / s.file).string();
    const RawFile raw = RawFile::open(path);
    if (raw.size() != s.bytes) {
      wrong.push_back(concat(path, ": has ", raw.size(), " bytes, expected ", s.bytes));
      return;
    }
    // Where the tokens are, as far as the shard can still be read.
    int64_t tokens_at = 0, token_bytes = 0;
    try {
      const TokenShard shard(path);
      tokens_at = shard.tokens_position();
      token_bytes = shard.info().token_bytes;
      const ShardInfo& info = shard.info();
      if (info.tokenizer_digest != manifest.tokenizer_digest || info.num_tokens != s.num_tokens ||
          info.num_documents != s.num_documents || info.end_of_document != manifest.end_of_document)
        wrong.push_back(concat(path, ": its attributes are not those of the manifest"));
    } catch (const DataError& e) {
      wrong.push_back(e.what());
    }
    Sha256 digest;
    bool has_bad_block = false;
    for_blocks(raw, [&](int64_t at, const std::string& block) {
      digest.update(block.data(), block.size());
      const size_t number = static_cast<size_t>(at / DatasetManifest::kBlockBytes);
      if (number < s.block_crc32c.size() && crc32c(block.data(), block.size()) == s.block_crc32c[number]) return;
      has_bad_block = true;
      const auto end = at + static_cast<int64_t>(block.size());
      std::string tokens;
      if (token_bytes > 0) {
        const int64_t first = std::clamp<int64_t>((at - tokens_at) / token_bytes, 0, s.num_tokens);
        const int64_t last = std::clamp<int64_t>((end - tokens_at + token_bytes - 1) / token_bytes, 0, s.num_tokens);
        if (first < last) tokens = concat(", tokens ", first, " to ", last - 1);
      }
      wrong.push_back(concat(path, ": block ", number, " is damaged (bytes ", at, " to ", end - 1, tokens, ")"));
    });
    if (!has_bad_block && digest.hex() != s.sha256)
      wrong.push_back(concat(path, ": its SHA-256 is not that of the manifest"));
  };
  for (const DatasetManifest::Shard& s : manifest.shards) {
    try {
      verify(s);
    } catch (const DataError& e) {
      wrong.push_back(e.what());
    }
  }
  if (!manifest.tokenizer_file.empty()) {
    const std::string path = (fs::path(folder) / manifest.tokenizer_file).string();
    const std::string text = file_text(path);
    if (sha256(text) != manifest.tokenizer_digest)
      wrong.push_back(concat(path, ": is not the tokenizer that the dataset was made with"));
  }
  return wrong;
}

}  // namespace braid
