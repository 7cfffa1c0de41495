#pragma once

#include "kernels/cuda/attention_backends.h"
#include "kernels/cuda/common.cuh"

// Own attention kernels, for what cuDNN does not do. A block owns a tile of consecutive tokens, which may hold parts of
// several documents, and walks over blocks of tokens on the other side: the keys that its queries see, or the queries
// that see its keys. Those blocks are counted from the beginning of a document. So the grid depends on the number of
// tokens only, and every row is summed in the same order whether its document is alone or packed with others.
namespace braid::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// 2^x, to 2 ulp.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class Kernel>
void allow_shared_memory(Kernel* kernel, int64_t bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
}

struct AttentionProblem {
  int64_t N;
  int Hq, Hkv, Dh;
  const int32_t* document_begin;  // (N)

  int group() const { return Hq / Hkv; }
};

inline AttentionProblem attention_problem(const AttentionTensors& in, const Segments& segments) {
  return {in.q.dim(0), static_cast<int>(in.q.dim(1)), static_cast<int>(in.k.dim(1)), static_cast<int>(in.q.dim(2)),
          pointer<int32_t>(segments.on_gpu.document_begin)};
}

// First token after those of the document that `token` belongs to, or `limit` if that comes first.
__device__ __forceinline__ int end_of_document(const int32_t* document_begin, int token, int limit) {
  const int document = document_begin[token];
  int inside = token, step = 1;
  while (inside + step < limit && document_begin[inside + step] == document) {
    inside += step;
    step *= 2;
  }
  int outside = min(inside + step, limit);
  while (outside - inside > 1) {
    const int middle = inside + (outside - inside) / 2;
    if (document_begin[middle] == document) inside = middle;
    else outside = middle;
  }
  return outside;
}

// The blocks of keys that the queries [tile_begin, tile_end) see, document by document.
template <int kTile, int kBlock>
struct KeyBlocks {
  const int32_t* document_begin;
  int tile_begin, tile_end;
  int document, run_end;  // the document whose keys are visited, and where its queries in the tile end
  int key;                // the block is [key, key + kBlock); part of it may lie after the document
  bool done = false;

  __device__ KeyBlocks(const int32_t* document_begin, int begin, int end)
      : document_begin(document_begin), tile_begin(begin), tile_end(end) {
    enter(begin);
  }
  __device__ __forceinline__ void next() {
    key += kBlock;
    if (key < run_end) return;
    if (run_end == tile_end) done = true;
    else enter(run_end);
  }
  // Does every query see every key, so that no mask is needed?
  __device__ __forceinline__ bool all_visible() const {
    return document <= tile_begin && run_end == tile_begin + kTile && key + kBlock - 1 <= tile_begin;
  }
  // For queries from tile_begin and keys from `key` on.
  __device__ __forceinline__ bool visible(int query, int k) const {
    return k <= query && query >= document && query < run_end;
  }

 private:
  __device__ __forceinline__ void enter(int query) {
    document = key = document_begin[query];
    run_end = end_of_document(document_begin, query, tile_end);
  }
};

// The blocks of queries that see the keys [tile_begin, tile_end), document by document and head by head.
template <int kTile, int kBlock>
struct QueryBlocks {
  const int32_t* document_begin;
  int num_tokens, num_heads, tile_begin, tile_end;
  int document, document_end;
  int head;   // of the group
  int query;  // the block is [query, query + kBlock); part of it may lie after the document
  bool done = false;

  __device__ QueryBlocks(const int32_t* document_begin, int num_tokens, int num_heads, int begin, int end)
      : document_begin(document_begin), num_tokens(num_tokens), num_heads(num_heads), tile_begin(begin), tile_end(end) {
    enter(begin);
  }
  __device__ __forceinline__ void next() {
    query += kBlock;
    if (query < document_end) return;
    query = first_query();
    if (++head < num_heads) return;
    if (document_end >= tile_end) done = true;
    else enter(document_end);
  }
  __device__ __forceinline__ bool all_visible() const {
    return document <= tile_begin && query >= tile_begin + kTile - 1 && query + kBlock <= document_end;
  }
  __device__ __forceinline__ bool visible(int q, int key) const {
    return key <= q && key >= document && q < document_end;
  }

 private:
  __device__ __forceinline__ int first_query() const {
    const int first_key = max(document, tile_begin);
    return document + (first_key - document) / kBlock * kBlock;
  }
  __device__ __forceinline__ void enter(int key) {
    document = document_begin[key];
    document_end = end_of_document(document_begin, key, num_tokens);
    head = 0;
    query = first_query();
  }
};

}  // namespace braid::cuda
