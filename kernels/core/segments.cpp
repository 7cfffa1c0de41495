#include "kernels/core/segments.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/copy.h"

namespace braid {
namespace {

// A tensor of the first elements of planned memory, filled from the host.
template <class T>
Tensor filled(Context& ctx, Tensor memory, const std::vector<T>& values) {
  Tensor head = memory.rows(0, static_cast<int64_t>(values.size()));
  copy(ctx, head, Tensor::of(const_cast<T*>(values.data()), head.shape()));
  return head;
}

}  // namespace

void Segments::plan_tables(Planner& planner, Tables& tables, int64_t max_tokens) {
  planner.add("segments.offsets", tables.offsets, {max_tokens + 1}, DType::kI32);
  planner.add("segments.document_begin", tables.document_begin, {max_tokens}, DType::kI32);
  planner.add("segments.position", tables.position, {max_tokens}, DType::kI32);
  planner.add("segments.valid", tables.valid, {max_tokens}, DType::kU8);
  planner.add("segments.first_chunk", tables.first_chunk, {max_tokens + 1}, DType::kI32);
  planner.add("segments.chunk_begin", tables.chunk_begin, {max_tokens + 1}, DType::kI32);
  planner.add("segments.by_length", tables.by_length, {max_tokens}, DType::kI32);
  planner.add("segments.key_shift", tables.key_shift, {max_tokens + 1}, DType::kI32);
}

std::vector<int32_t> Segments::by_length() const {
  std::vector<int32_t> order(static_cast<size_t>(num_documents()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return length(a) > length(b); });
  return order;
}

void Segments::upload(Context& ctx, const Tables& tables) {
  std::vector<int32_t> starts, begins(static_cast<size_t>(num_tokens())), positions(begins), first_chunk, chunk_begin;
  for (int64_t d = 0; d < num_documents(); ++d) {
    starts.push_back(static_cast<int32_t>(begin(d)));
    std::iota(positions.begin() + begin(d), positions.begin() + end(d), static_cast<int32_t>(before_document(d)));
    std::fill(begins.begin() + begin(d), begins.begin() + end(d), static_cast<int32_t>(begin(d)));
    first_chunk.push_back(static_cast<int32_t>(chunk_begin.size()));
    for (int64_t t = begin(d); t < end(d); t += kChunkTokens) chunk_begin.push_back(static_cast<int32_t>(t));
  }
  starts.push_back(static_cast<int32_t>(num_tokens()));
  first_chunk.push_back(static_cast<int32_t>(chunk_begin.size()));
  chunk_begin.push_back(static_cast<int32_t>(num_tokens()));
  on_gpu = {filled(ctx, tables.offsets, starts),          filled(ctx, tables.document_begin, begins),
            filled(ctx, tables.position, positions),      filled(ctx, tables.valid, valid),
            filled(ctx, tables.first_chunk, first_chunk), filled(ctx, tables.chunk_begin, chunk_begin),
            filled(ctx, tables.by_length, by_length())};
  if (tokens_before.empty()) return;
  std::vector<int32_t> key_shift = {0};
  for (int64_t before : tokens_before) key_shift.push_back(key_shift.back() + static_cast<int32_t>(before));
  on_gpu.key_shift = filled(ctx, tables.key_shift, key_shift);
}

}  // namespace braid
