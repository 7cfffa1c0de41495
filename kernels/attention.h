#pragma once

#include <string>

#include "kernels/core/context.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"

namespace braid {

struct AttentionTensors {  // what attention reads; query head h uses key/value head h / (Hq / Hkv)
  Tensor q;                // (N, Hq, Dh)
  // (M, Hkv, Dh), M = N + all tokens that came before the rows (see Segments), which lie before those of their row
  Tensor k, v;
  Tensor q_gate;  // (N, Hq, 2, Dh)  only the gate half is read; undefined: no gate
};
struct AttentionGradients {
  Tensor q;       // (N, Hq, Dh)
  Tensor k, v;    // (M, Hkv, Dh)
  Tensor q_gate;  // (N, Hq, 2, Dh)  only the gate half is written; undefined without a gate
};
struct AttentionOutputs {
  Tensor y;    // (N, Hq, Dh)  after the gate; without one it may be o itself
  Tensor o;    // (N, Hq, Dh)  before it
  Tensor lse;  // (N, Hq)      log of the sum of exp of the scaled scores
  // (1) F64  the largest scaled score of any query and key; undefined where nobody asks for it. On the CPU only.
  Tensor score_max = {};
  // (1) F64  the weight of the document's first token, mean over heads, summed over valid tokens; the first token
  // itself counts as 1. Likewise undefined, and on the CPU only.
  Tensor first_token_share = {};
};

// Causal softmax attention inside each document, with an element-wise output gate or none:
//   o = softmax(q k^T / sqrt(Dh)) v;   y = o * sigmoid(gate), or y = o without a gate
// Activations fp32, bf16 (GPU) or fp64 (CPU); lse in the wide dtype. Scores are formed in tiles, never whole.
// Packed documents give the same bits as separate ones wherever one implementation serves both: on the CPU, for every
// thread count, and in Braid's own GPU kernels.
// Source: Qwen3NextAttention in transformers; arXiv 2505.06708.   Errors: ShapeError, DTypeError, naming the tensor.
void attention_forward(Context& ctx, AttentionOutputs out, const AttentionTensors& in, const Segments& segments);

// Every gradient is overwritten; those of k and v are summed over the query heads that share them, in a fixed order.
void attention_backward(Context& ctx, AttentionGradients d_in, const Tensor& d_y, const AttentionTensors& in,
                        const AttentionOutputs& out, const Segments& segments);

// Which code serves such tensors and segments, for logs and tests: "CPU", "cuDNN", or the name of an own kernel and, in
// brackets, why it is not cuDNN. The choice depends on shapes, dtypes and the device, on whether every row is one
// document and, for packed documents, on the power of two above their number; so does what a CUDA graph captures.
struct AttentionImplementation {
  std::string forward, backward;
  std::string why_slow;  // empty, or why a faster way does not serve; packed documents are no reason
};
AttentionImplementation attention_implementation(Context& ctx, const AttentionTensors& in, const Segments& segments);

}  // namespace braid
