#pragma once

#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"

namespace braid {

// What the delta rule reads, per token. Value head j uses key head j / (Hv / Hk). The same struct holds gradients.
// q, k and v are activations: fp32, bf16 (GPU) or fp64 (CPU); beta and log_decay are in the wide dtype.
struct DeltaRuleInputs {
  Tensor q;          // (N, Hk, Dk)  l2-normalised
  Tensor k;          // (N, Hk, Dk)  l2-normalised
  Tensor v;          // (N, Hv, Dv)
  Tensor beta;       // (N, Hv)      in [0, 1]; wide
  Tensor log_decay;  // (N, Hv)      <= 0; wide
};

// The states S at both ends of every row of a batch, for a text that comes in pieces: token by token, or spread over
// ranks. Wide.   A tensor that is not defined stands for zeros (initial), or is not asked for (final).
struct DeltaRuleStates {
  Tensor initial;  // (B, Hv, Dk, Dv)  before the first token of each row; 0 where a document starts with the row
  Tensor final;    // (B, Hv, Dk, Dv)  behind the last one, overwritten; may be `initial` if every row is one document
};

// The same for backward.
struct DeltaRuleStateGradients {
  Tensor initial;    // (B, Hv, Dk, Dv)  what forward had; not defined: zeros
  Tensor d_initial;  // (B, Hv, Dk, Dv)  overwritten; or not asked for
  Tensor d_final;    // (B, Hv, Dk, Dv)  not defined: zeros
};

// Gated delta rule, one state S (Dk, Dv) per value head, S = 0 at the start of every document, s = Dk^-1/2:
//   S_hat = exp(log_decay_t) S;  delta = beta_t (v_t - S_hat^T k_t);  S = S_hat + k_t delta^T;  o_t = s S^T q_t
// in the chunked form: chunks of kDeltaRuleChunk tokens that restart at every document, decay kept outside the
// triangular solve. Work per token does not grow with the length of the sequence.
//   o (N, Hv, Dv)  overwritten; of the dtype of v; not defined: only the final states are wanted, which is less work
// With states a row's first document goes on from the row's initial one, and a row's last leaves its final one.
// Packed documents give the same bits as separate ones, for every thread count. States and sums are fp32 for bf16.
// Source: arXiv 2412.06464; the decay-free form as in FlashQLA.   Errors: ShapeError, DTypeError, naming the tensor.
inline constexpr int64_t kDeltaRuleChunk = Segments::kChunkTokens;
void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments,
                              DeltaRuleStates states = {});

// All five gradients are overwritten; those of q and k are summed over the value heads that share a key head. Without
// them (none is defined) only d_initial is wanted, which is less work. Nothing is kept from the forward pass: the state
// before every chunk is recomputed, in scratch that holds those of one document and key head per thread (CPU), or of
// all (GPU). For bf16 the GPU takes a beta below 2^-80 as 2^-80: what that writes is far below rounding, and d_beta may
// be a quotient by beta.
void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                               const Segments& segments, DeltaRuleStateGradients states = {});

// Rows that are parts of longer ones: the state behind a part is linear in the one before it, S_behind = A S_before +
// B, and so are their gradients, d_S_before = A^T d_S_behind + D. B is the final state of a part that begins with none,
// D the gradient of its initial state where nothing comes from behind; both ask of A only what crosses the whole part.
//   transition (B, Hv, Dk, Dk)  overwritten, wide: A of every row; 0 where a document begins or ends in the row or at
//                               one of its ends, which `segments` says
void gated_delta_rule_transition(Context& ctx, Tensor transition, const DeltaRuleInputs& in, const Segments& segments);

// The states at the borders of parts of rows, from what the parts before them (behind them, for gradients) have to say.
//   transitions (L, Hv, Dk, Dk), contributions (L, Hv, Dk, Dv)  of L parts
//   states (B, Hv, Dk, Dv)  overwritten: 0, then A S + B (A^T S + B for kBackward) for each part on the way to it
//   ways: of every state, those parts, nearest last
enum class StateDirection { kForward, kBackward };
void carry_states(Context& ctx, Tensor states, const Tensor& transitions, const Tensor& contributions,
                  const std::vector<std::vector<int64_t>>& ways, StateDirection direction);

// The same functions step by step, on the CPU: the oracle of the tests.
void gated_delta_rule_recurrent_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments);
void gated_delta_rule_recurrent_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o,
                                         const DeltaRuleInputs& in, const Segments& segments);

Implementation gated_delta_rule_implementation(Context& ctx, const DeltaRuleInputs& in);

}  // namespace braid
