#pragma once

#include <string>
#include <vector>

#include "data/token_shard.h"
#include "tests/file_testing.h"

namespace braid::testing {

constexpr int64_t kVocabulary = 1000, kEnd = 999;

// A shard with documents of these lengths, the end-of-document id counted in. The other ids count up from `first_id`,
// so that each says where it stands.
inline std::string write_shard(const std::string& path, const std::vector<int64_t>& lengths, uint32_t first_id = 0,
                               const std::string& digest = "digest") {
  TokenShardWriter writer(path, kVocabulary, kEnd, "test", digest);
  uint32_t next = first_id;
  for (int64_t length : lengths) {
    std::vector<uint32_t> tokens;
    for (int64_t i = 0; i + 1 < length; ++i) tokens.push_back(next++ % kEnd);
    writer.add_document(tokens);
  }
  writer.close();
  return path;
}

}  // namespace braid::testing
