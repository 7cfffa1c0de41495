#pragma once

#include "kernels/core/context.h"
#include "kernels/core/implementation.h"
#include "kernels/core/tensor.h"
#include "kernels/matmul.h"

namespace braid {

struct ExpertWeights {  // also holds their gradients
  Tensor gate_up;       // (El, 2F, C)  rows [0, F) gate, [F, 2F) up
  Tensor down;          // (El, C, F)
};

// SwiGLU experts over rows grouped by expert; expert e owns the next rows_per_expert[e] rows (0 is normal):
//   [a | b] = x gate_up_e^T;   out = (row_gate * silu(a) * b) down_e^T
//   out, x (R, C);  gate_up_out (R, 2F) is [a | b], saved for backward;  row_gate (R)
//   rows_per_expert (El) I64, sums to R.   out may be left undefined, if gate_up_out alone is wanted.   Activations and
//   weights fp32, bf16 (GPU) or fp64 (CPU); row_gate and its gradient in the wide dtype, and so are the gradients of
//   the weights, or bf16 beside bf16 activations.
// On the GPU, where the host does not know the sum, R may be larger; rows from the sum on are neither read nor written,
// and El <= 4096.
// The routing weight is applied here, to the narrow rows, so combining is a plain sum and expert outputs need not be
// kept.
// Source: Qwen3NextExperts in transformers.   Errors: ShapeError, DTypeError, naming the tensor.
void experts_forward(Context& ctx, Tensor out, Tensor gate_up_out, const Tensor& x, const Tensor& row_gate,
                     const Tensor& rows_per_expert, const ExpertWeights& weights);

// Where the rows of an expert may be cut so that calls on the parts, one after the other, give the bits of one call.
inline constexpr int64_t kExpertBlockRows = 4096;

// Of the rows between the products: what the gradients of the weights need beside x and d_out.
struct ExpertHidden {
  Tensor h;              // (R, F)   row_gate * silu(a) * b
  Tensor d_gate_up_out;  // (R, 2F)
};

// Backward in two parts, so that the rows' gradients can go their way while those of the weights are made.
//   d_x (R, C), d_row_gate (R) and hidden overwritten
void experts_backward_input(Context& ctx, Tensor d_x, Tensor d_row_gate, ExpertHidden hidden, const Tensor& d_out,
                            const Tensor& row_gate, const Tensor& gate_up_out, const Tensor& rows_per_expert,
                            const ExpertWeights& weights);
//   d_weights [+]= , zero for an expert without rows: the sums over blocks of kExpertBlockRows rows of an expert, added
//   one after the other
// A block is summed in fp32; a bf16 gradient gets it rounded, and where it adds, their sum is rounded once more.
void experts_backward_weight(Context& ctx, ExpertWeights d_weights, const ExpertHidden& hidden, const Tensor& d_out,
                             const Tensor& x, const Tensor& rows_per_expert, Accumulate accumulate = Accumulate::kYes);

Implementation experts_implementation(Context& ctx, const ExpertWeights& weights);

}  // namespace braid
