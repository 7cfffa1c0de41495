// dataset.json: what is read is written again as the same text.
#include <stdexcept>

#include "data/corpus/dataset_manifest.h"
#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

std::vector<std::string> seeds() {
  DatasetManifest m;
  m.tokenizer = "bpe", m.tokenizer_digest = "0123abcd", m.tokenizer_file = "tokenizer.json", m.vocab_size = 300,
  m.end_of_document = 299;
  m.source_digest = "feed", m.unreadable = 1, m.repaired = 2, m.met_again = 3;
  m.shards = {{"shard-00000.h5", 10, 2, 1000, "aa", {1, 2}}, {"shard-00001.h5", 20, 3, 2000, "bb", {3, 4, 5}}};
  return {to_json(m), to_json(DatasetManifest{})};
}

void take(std::string_view bytes) {
  const DatasetManifest m = parse_manifest(std::string(bytes), "fuzz");
  const std::string text = to_json(m);
  if (to_json(parse_manifest(text, "again")) != text) throw std::logic_error("read again, it is another");
  for (const DatasetManifest::Shard& shard : m.shards)
    if (shard.file.find('/') != shard.file.npos) throw std::logic_error("a shard outside the folder");
}

}  // namespace braid::fuzz
