// Token shards: whatever is opened can be read to its end, ids and offsets inside their bounds.
#include <stdexcept>

#include "data/token_shard.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/plain_hdf5.h"

namespace braid::fuzz {

std::vector<std::string> seeds() {
  // One as we write it, all metadata under checksums, and one as h5py does, without any.
  const std::string path = as_file("written.h5", "");
  TokenShardWriter writer(path, 300, 299, "letters", "0123abcd");
  writer.add_document(std::vector<uint32_t>{1, 2, 3});
  writer.add_document({});
  writer.add_document(std::vector<uint32_t>(70, 298));
  writer.close();
  return {file_text(path), plain_hdf5({1, 2, 9, 3, 9}, {0, 3, 5})};
}

void take(std::string_view bytes) {
  const TokenShard shard(as_file("shard.h5", bytes));
  const ShardInfo& info = shard.info();
  const std::vector<int64_t> offsets = shard.document_offsets();
  std::vector<uint32_t> ids(info.num_tokens);
  shard.read(0, info.num_tokens, ids.data());
  for (const uint32_t id : ids)
    if (id >= info.vocab_size) throw std::logic_error("an id outside the vocabulary");
  for (size_t d = 0; d + 1 < offsets.size(); ++d)
    if (offsets[d] < 0 || offsets[d] > offsets[d + 1] || offsets[d + 1] > info.num_tokens)
      throw std::logic_error("offsets outside the tokens");
}

}  // namespace braid::fuzz
