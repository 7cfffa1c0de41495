// Operators that only move numbers, or make them.
#include <algorithm>
#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/embedding.h"
#include "kernels/random.h"
#include "trainer/bench/workbench.h"

namespace braid {
namespace {

// Ids as uneven as those of text: density 1 / rank, ranks spread over the table.
std::vector<int64_t> text_like_ids(int64_t num_tokens, int64_t vocab) {
  std::vector<int64_t> ids;
  for (int64_t n = 0; n < num_tokens; ++n) {
    const auto bits = philox(1, 2, static_cast<uint64_t>(n));
    const auto rank = static_cast<int64_t>(std::pow(double(vocab), unit_interval(bits[0], bits[1])));
    ids.push_back(rank * 7919 % vocab);
  }
  return ids;
}

int64_t count_distinct(std::vector<int64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return std::unique(ids.begin(), ids.end()) - ids.begin();
}

}  // namespace

void bench_copy(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size;
  const std::string shape = b.tokens_by(C);
  {
    const Tensor from = b.normal({b.options().copy_bytes / 4}, DType::kF32);
    Tensor to = b.empty(from.shape(), DType::kF32);
    b.measure(
        "copy", concat(from.bytes(), " bytes"), {.bytes = 2.0 * double(from.bytes())},
        [&](int) { copy(b.ctx(), to, from); }, Launch::kDirect);
  }
  const Workbench::Tensors wide = b.normals({N, C}, DType::kF32);
  Workbench::Tensors narrow = b.normals({N, C}, b.activation());
  Tensor y = b.empty({N, C}, b.activation());
  const double bytes = double(y.bytes());
  b.measure("copy", shape, {.bytes = 2 * bytes}, [&](int turn) { copy(b.ctx(), y, narrow[turn]); });
  b.measure("convert", shape + ", from fp32", {.bytes = bytes + double(wide[0].bytes())},
            [&](int turn) { convert(b.ctx(), y, wide[turn]); });
  b.measure("fill_zero", shape, {.bytes = bytes}, [&](int turn) { fill_zero(b.ctx(), narrow[turn]); });
}

void bench_random(Workbench& b) {
  Workbench::Tensors x = b.normals({b.num_tokens(), b.model().hidden_size}, b.activation());
  const std::string shape = b.tokens_by(b.model().hidden_size);
  b.measure("fill_normal", shape, {.bytes = double(x[0].bytes())},
            [&](int turn) { fill_normal(b.ctx(), x[turn], 0, 1, 1, 2, 0); });
  b.measure("fill_uniform", shape, {.bytes = double(x[0].bytes())},
            [&](int turn) { fill_uniform(b.ctx(), x[turn], 0, 1, 1, 2, 0); });
}

void bench_embedding(Workbench& b) {
  const int64_t N = b.num_tokens(), C = b.model().hidden_size, V = b.model().vocab_size;
  const DType wide = wide_dtype(b.activation());
  const std::vector<int64_t> host_ids = text_like_ids(N, V);
  const double distinct = double(count_distinct(host_ids)), a = b.activation_bytes(), w = double(size_of(wide));
  const Workbench::Tensors d_y = b.normals({N, C}, b.activation());
  const Tensor table = b.normal({V, C}, b.activation()), ids = b.filled(host_ids, {N});
  Tensor d_table = b.zeros({V, C}, wide), y = b.empty({N, C}, b.activation());
  const std::string shape = concat(b.tokens_by(C), ", vocabulary ", V);
  b.measure("embedding_forward", shape, {.bytes = (a * double(N) + a * distinct) * double(C)},
            [&](int) { embedding_forward(b.ctx(), y, ids, table); });
  b.measure("embedding_backward", shape, {.bytes = (a * double(N) + 2 * w * distinct) * double(C)},
            [&](int turn) { embedding_backward(b.ctx(), d_table, d_y[turn], ids); });
}

}  // namespace braid
