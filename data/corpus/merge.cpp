#include "data/corpus/merge.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>

#include "data/corpus/dataset_writer.h"
#include "data/corpus/documents.h"
#include "data/corpus/text_input.h"
#include "data/token_source.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

// What decides how tokens are to be read, without shards and counts.
DatasetManifest manifest_like(const DatasetManifest& other) {
  DatasetManifest m;
  m.tokenizer = other.tokenizer;
  m.tokenizer_digest = other.tokenizer_digest;
  m.vocab_size = other.vocab_size;
  m.end_of_document = other.end_of_document;
  return m;
}

void copy_tokenizer(const NamedDataset& from, const std::string& folder, DatasetManifest& m) {
  if (from.manifest.tokenizer_file.empty()) return;
  m.tokenizer_file = "tokenizer.json";
  write_file_atomically((fs::path(folder) / m.tokenizer_file).string(),
                        file_text((fs::path(from.name) / from.manifest.tokenizer_file).string()));
}

std::string digest_of_shards(const std::vector<NamedDataset>& datasets) {
  Sha256 digest;
  for (const NamedDataset& dataset : datasets)
    for (const DatasetManifest::Shard& shard : dataset.manifest.shards)
      digest.update(shard.sha256.data(), shard.sha256.size());
  return digest.hex();
}

}  // namespace

DatasetManifest merge_datasets(const std::vector<std::string>& from, const std::string& to, int64_t shard_tokens) {
  check_outside(to, from);
  std::vector<NamedDataset> datasets;
  std::map<std::string, const std::string*> owner_of;  // by the SHA-256 of a shard
  datasets.reserve(from.size());
  for (const std::string& path : from) {
    const NamedDataset &here = datasets.emplace_back(open_whole_dataset(path)), &first = datasets.front();
    check<DataError>(here.manifest.tokenizer_digest == first.manifest.tokenizer_digest &&
                         here.manifest.vocab_size == first.manifest.vocab_size &&
                         here.manifest.end_of_document == first.manifest.end_of_document,
                     path, ": was made with tokenizer ", here.manifest.tokenizer, " ", here.manifest.tokenizer_digest,
                     ", but ", first.name, " with ", first.manifest.tokenizer, " ", first.manifest.tokenizer_digest);
    for (size_t s = 0; s < here.shards.size(); ++s) {
      const auto [owner, is_new] = owner_of.emplace(here.manifest.shards[s].sha256, &here.name);
      check<DataError>(is_new || owner->second == &here.name, here.shards[s], ": is in ", *owner->second,
                       " too; its documents would be there twice");
    }
  }
  DatasetManifest m = manifest_like(datasets.front().manifest);
  m.source_digest = digest_of_shards(datasets);
  DurableFolder folder(to);
  DatasetWriter writer(folder.temporary(), m, shard_tokens);
  for (const NamedDataset& dataset : datasets) {
    if (m.tokenizer_file.empty()) copy_tokenizer(dataset, folder.temporary(), m);
    m.unreadable += dataset.manifest.unreadable;
    m.repaired += dataset.manifest.repaired;
    m.met_again += dataset.manifest.met_again;
    for_document_pieces(dataset, [&](std::span<const uint32_t> ids, bool is_end) {
      writer.append(ids);
      if (is_end) writer.end_document();
    });
  }
  writer.finish();
  folder.finish();
  return m;
}

std::vector<SplitPart> split_dataset(const SplitOptions& options) {
  check_outside(options.to, {options.from});
  const NamedDataset dataset = open_whole_dataset(options.from);
  const auto check_possible = [&](bool ok, const std::string& why) {
    check<DataError>(ok, options.from, ": its ", dataset.manifest.num_documents(),
                     " documents cannot be split like this: ", why);
  };
  check_possible(options.parts <= dataset.manifest.num_documents(), concat("there are more parts, ", options.parts));
  DurableFolder folder(options.to);
  std::vector<SplitPart> parts;
  if (options.parts > 0) {
    for (int64_t p = 0; p < options.parts; ++p) {
      const std::string number = std::to_string(p);
      parts.push_back({concat("part-", std::string(number.size() < 5 ? 5 - number.size() : 0, '0'), number), {}});
    }
  } else {
    parts = {{"train", {}}, {"held-out", {}}};
  }
  std::vector<std::unique_ptr<DatasetWriter>> writers;
  for (SplitPart& part : parts) {
    const std::string path = (fs::path(folder.temporary()) / part.folder).string();
    create_folder(path);
    part.manifest = manifest_like(dataset.manifest);
    part.manifest.source_digest =
        sha256(concat(digest_of_shards({dataset}), ' ', options.parts, ' ', options.held_out, ' ', part.folder));
    copy_tokenizer(dataset, path, part.manifest);
    writers.push_back(std::make_unique<DatasetWriter>(path, part.manifest, options.shard_tokens));
  }
  const HeldOut held{.fraction = options.held_out};
  int64_t document = 0, left = dataset.manifest.num_tokens();  // behind the piece
  size_t part = 0;
  int64_t share = 0, taken = 0;  // of the part: tokens that end it, and those that it has
  bool is_first = true;          // piece of its document
  for_document_pieces(dataset, [&](std::span<const uint32_t> ids, bool is_end) {
    if (is_first && options.parts == 0) part = held.holds(document) ? 1 : 0;
    if (is_first && options.parts > 0 && (document == 0 || (taken >= share && part + 1 < parts.size()))) {
      if (document > 0) writers[part++]->finish_shard();  // few files stay open
      share = left / static_cast<int64_t>(parts.size() - part);
      taken = 0;
    }
    writers[part]->append(ids);
    const int64_t tokens = static_cast<int64_t>(ids.size()) + is_end;
    taken += tokens;
    left -= tokens;
    document += is_end;
    if (is_end) writers[part]->end_document();
    is_first = is_end;
  });
  for (size_t p = 0; p < parts.size(); ++p) {
    writers[p]->finish();
    check_possible(parts[p].manifest.num_documents() > 0, parts[p].folder + " would have none");
    parts[p].folder = (fs::path(options.to) / parts[p].folder).string();
  }
  folder.finish();
  return parts;
}

}  // namespace braid
