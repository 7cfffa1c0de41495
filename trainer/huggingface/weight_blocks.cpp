#include "trainer/huggingface/weight_blocks.h"

#include <algorithm>

namespace braid {
namespace {

constexpr int64_t kBlockBytes = int64_t{1} << 20;  // what is read is still in the cache when it is digested and written

}  // namespace

void for_each_block(const WeightSource& source, const TypedParameter& typed, int64_t begin, int64_t end,
                    const std::function<void(const Tensor& block)>& body) {
  const auto& [parameter, dtype] = typed;
  const int64_t block_elements = std::min(kBlockBytes / size_of(dtype), end - begin);
  std::vector<char> memory(static_cast<size_t>(block_elements * size_of(dtype)));
  for (int64_t first = begin, last = begin; first < end; first = last) {
    last = std::min(first + block_elements, end);
    const Tensor block(memory.data(), dtype, {last - first});
    source.read_weights(parameter, first, last, block);
    body(block);
  }
}

std::vector<std::pair<size_t, size_t>> deal_to_files(const std::vector<int64_t>& item_bytes, int64_t max_bytes) {
  std::vector<std::pair<size_t, size_t>> files;
  int64_t room = 0;
  for (size_t item = 0; item < item_bytes.size(); ++item) {
    if (files.empty() || item_bytes[item] > room) {
      files.push_back({item, item});
      room = max_bytes;
    }
    room -= item_bytes[item];
    files.back().second = item + 1;
  }
  return files;
}

}  // namespace braid
