#pragma once

#include <string>

#include "kernels/attention.h"

// The ways to compute softmax attention on a GPU, before the gate. attention.cu chooses one and adds the gate. All give
// the same bits every time; none asks the device anything.
namespace braid::cuda {

// What the backward functions read beside the inputs and the outputs: the gradient of o (N, Hq, Dh), and
// delta (N, Hq) F32 = sum over Dh of d_o * o.
struct AttentionOutputGradient {
  Tensor d_o, delta;
};

// On tensor cores (mma.sync): bf16, Dh a multiple of 16 up to 256, if the GPU has the shared memory. Forward writes o,
// y and lse.
bool mma_attention_supports(const Context& ctx, const AttentionTensors& in);
void mma_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in, const Segments& segments);
void mma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                            const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments);

// On Hopper's tensor cores (wgmma): bf16, Dh a multiple of 16 from 144 to 256. Of the gradients of scores, T x T per
// row and head, as many exist at a time as `most_score_bytes` hold, or those of one tile of queries; the results have
// the same bits for any number of them. By default there are kMostScoreBytes, or, for long rows, those of
// kLeastQueryTiles tiles of queries: sums over queries are stored and loaded between two stripes of them, and this is
// to be little beside what is computed. A captured graph serves batches with other documents, as below.
inline constexpr int64_t kMostScoreBytes = (int64_t{1} << 30) + (int64_t{1} << 27), kLeastQueryTiles = 16;
inline constexpr int64_t kByLength = -1;
bool wgmma_attention_supports(const Context& ctx, const AttentionTensors& in);
void wgmma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                              const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments,
                              int64_t most_score_bytes = kByLength);

// In fp32 arithmetic: any dtype, any head size whose tiles fit shared memory. Forward writes o and lse.
void fma_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in, const Segments& segments);
void fma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                            const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments);

// In cuDNN: bf16 on Hopper and newer. Empty if it serves, or else why not.
//   forward: whole rows, or packed documents, also those of rows that go on; writes o and lse.
//   backward: whole rows of a multiple of 128 tokens. The deterministic algorithm of Hopper keeps a matrix of T x T
//     bf16 per row and head in its workspace, so the batch is worked off a few rows at a time, and packed documents,
//     each of which would take a row of its own, are not served. lse_by_head (B, Hq, T) is lse in the one layout that
//     cuDNN before 9.26 reads.
// A captured graph serves batches with other documents, as long as their number stays within document_bound.
std::string why_not_cudnn_forward(Context& ctx, const AttentionTensors& in, const Segments& segments);
std::string why_not_cudnn_backward(Context& ctx, const AttentionTensors& in, const Segments& segments);
void cudnn_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in, const Segments& segments);
void cudnn_attention_backward(Context& ctx, AttentionGradients& d_in, const Tensor& d_o, const Tensor& lse_by_head,
                              const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments);

inline bool is_whole_rows(const Segments& segments) { return segments.num_documents() == segments.num_rows; }

// Most documents that what is launched for a batch with this many packed ones allows.
inline int64_t document_bound(int64_t num_documents) {
  int64_t bound = 64;
  while (bound < num_documents) bound *= 2;
  return bound;
}

// Documents as cuDNN wants them, `bound` of them; those that do not exist have no tokens and begin at the end.
struct DocumentTables {
  Tensor lengths, key_lengths;             // (bound) I32
  Tensor q_offset, kv_offset, lse_offset;  // (bound + 1) I32  in elements of (N, Hq, Dh), (N, Hkv, Dh) and (N, Hq)
};
// In scratch memory.
DocumentTables make_document_tables(Context& ctx, Scratch& scratch, const AttentionTensors& in,
                                    const Segments& segments, int64_t bound);

}  // namespace braid::cuda
