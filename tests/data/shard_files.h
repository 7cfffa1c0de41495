#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "data/token_shard.h"
#include "tests/messages.h"

namespace braid::testing {

// A folder that is removed with everything in it.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "braid-data-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

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
