#pragma once

#include "kernels/cuda/attention_backends.h"
#include "kernels/cuda/common.cuh"

// Own attention kernels, for what cuDNN does not do. A block owns a tile of consecutive tokens, which may hold parts of
// several documents, and walks over blocks of tokens on the other side: the keys that its queries see, or the queries
// that see its keys. Those blocks are counted from the beginning of a document. So the grid depends on the number of
// tokens only, and every row is summed in the same order whether its document is alone or packed with others.
namespace braid::cuda {

template <class Kernel>
void allow_shared_memory(Kernel* kernel, int64_t bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
}

// Documents, each named by its first query. A row's keys are those before it, which belong to its first document, and
// its own, so all keys of a document follow one another, and so do all documents.
struct Documents {
  const int32_t* begin;      // (N)
  const int32_t* key_shift;  // see Segments::Tables; null: every query has the key of its own number
  int row_tokens;

  // From the document's queries to their keys.
  __device__ __forceinline__ int shift(int document) const {
    return key_shift ? key_shift[document / row_tokens + 1] : 0;
  }
  __device__ __forceinline__ int first_key(int document) const {
    if (!key_shift) return document;
    const int row = document / row_tokens;
    return document + key_shift[document == row * row_tokens ? row : row + 1];
  }
  // The query of this key; of one before a row, the row's first.
  __device__ __forceinline__ int query_of(int key) const {
    if (!key_shift) return key;
    int row = 0;
    while ((row + 1) * row_tokens + key_shift[row + 1] <= key) ++row;
    return max(key - key_shift[row + 1], row * row_tokens);
  }
};

inline Documents documents_of(const Segments& segments) {
  return {pointer<int32_t>(segments.on_gpu.document_begin), pointer<int32_t>(segments.on_gpu.key_shift),
          static_cast<int>(segments.row_tokens)};
}

struct AttentionProblem {
  int64_t N, M;  // queries, keys
  int Hq, Hkv, Dh;
  Documents documents;

  int group() const { return Hq / Hkv; }
};

inline AttentionProblem attention_problem(const AttentionTensors& in, const Segments& segments) {
  return {in.q.dim(0),
          in.k.dim(0),
          static_cast<int>(in.q.dim(1)),
          static_cast<int>(in.k.dim(1)),
          static_cast<int>(in.q.dim(2)),
          documents_of(segments)};
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
  Documents documents;
  int tile_begin, tile_end;
  int document, run_end;  // the document whose keys are visited, and where its queries in the tile end
  int shift;              // from its queries to their keys
  int key;                // the block is [key, key + kBlock); part of it may lie after the document
  bool done = false;

  __device__ KeyBlocks(const Documents& documents, int begin, int end)
      : documents(documents), tile_begin(begin), tile_end(end) {
    enter(begin);
  }
  __device__ __forceinline__ void next() {
    key += kBlock;
    if (key < run_end + shift) return;
    if (run_end == tile_end) done = true;
    else enter(run_end);
  }
  // Does every query see every key, so that no mask is needed?
  __device__ __forceinline__ bool all_visible() const {
    return document <= tile_begin && run_end == tile_begin + kTile && key + kBlock - 1 <= tile_begin + shift;
  }
  // For queries from tile_begin and keys from `key` on.
  __device__ __forceinline__ bool visible(int query, int k) const {
    return k <= query + shift && query >= document && query < run_end;
  }

 private:
  __device__ __forceinline__ void enter(int query) {
    document = documents.begin[query];
    shift = documents.shift(document);
    key = documents.first_key(document);
    run_end = end_of_document(documents.begin, query, tile_end);
  }
};

// The blocks of queries that see the keys [tile_begin, tile_end), document by document and head by head.
template <int kTile, int kBlock>
struct QueryBlocks {
  Documents documents;
  int num_tokens, num_heads, tile_begin, tile_end;
  int document, document_end;
  int first_key, shift;  // the document's, and from its queries to their keys
  int head;              // of the group
  int query;             // the block is [query, query + kBlock); part of it may lie after the document
  bool done = false;

  __device__ QueryBlocks(const Documents& documents, int num_tokens, int num_heads, int begin, int end)
      : documents(documents), num_tokens(num_tokens), num_heads(num_heads), tile_begin(begin), tile_end(end) {
    enter(begin);
  }
  __device__ __forceinline__ void next() {
    query += kBlock;
    if (query < document_end) return;
    query = first_query();
    if (++head < num_heads) return;
    if (document_end + shift >= tile_end) done = true;
    else enter(document_end + shift);
  }
  __device__ __forceinline__ bool all_visible() const {
    return first_key <= tile_begin && query + shift >= tile_begin + kTile - 1 && query + kBlock <= document_end;
  }
  __device__ __forceinline__ bool visible(int q, int key) const {
    return key <= q + shift && key >= first_key && q < document_end;
  }

 private:
  __device__ __forceinline__ int first_query() const {
    return document + max(0, tile_begin - shift - document) / kBlock * kBlock;
  }
  __device__ __forceinline__ void enter(int key) {
    const int of_key = documents.query_of(key);
    document = documents.begin[of_key];
    document_end = end_of_document(documents.begin, of_key, num_tokens);
    first_key = documents.first_key(document);
    shift = documents.shift(document);
    head = 0;
    query = first_query();
  }
};

}  // namespace braid::cuda
