#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace braid {

// The tokens that a file of another framework holds, and what it says of them. They stay in the file.
struct ForeignTokens {
  std::string path;
  int64_t count = 0;
  std::vector<int64_t> offsets;  // document d is tokens [offsets[d], offsets[d + 1]); empty: the file does not say
  // An id that parts documents where there are no offsets; it ends them, or begins them.
  std::optional<int64_t> mark;
  bool mark_begins = false;
  // Empty where it does not say.
  std::optional<int64_t> vocab_size, end_of_document;
  std::string tokenizer, tokenizer_digest;

  std::function<void(int64_t begin, int64_t end, int64_t* out)> read_values;  // as they are stored
  // Tokens [begin, end).   Errors: DataError for one that is no id.
  void read(int64_t begin, int64_t end, std::vector<uint32_t>& ids) const;
};

// Knows, by content and name:
//   HDF5         as shards (token_shard.h), of any storage and integer type that libhdf5 reads; attributes may be
//   missing,
//                and document_offsets too
//   Megatron-LM  NAME.idx and NAME.bin (either may be named), tokens of 8, 16, 32 or 64 bits
//   datatrove    NAME with NAME.index, the documents' ends; u16 or u32, by the sizes of the two
//   llm.c        .bin with magic 20240520 (u16, <|endoftext|> 50256) or 20240801 (u32, 128000) in front of each
//   document
//   numpy        .npy, 1-D, <u2 or <u4
//   raw          anything else, with `dtype` "u16" or "u32"
// Errors: DataError naming the file and what is wrong with it.
ForeignTokens open_foreign_tokens(const std::string& path, const std::string& dtype);

}  // namespace braid
