#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Brings the singular values of a matrix near 1 and keeps its singular vectors, in place:
//   x <- x / (|x| + 1e-7);   then five times  x <- (a + b S + c S^2) x,   S = x x^T
//   a, b, c = 3.4445, -4.7750, 2.0315, which lift small values fastest; they end between about 0.7 and 1.2, not at 1
//   x (M, N) fp32, bf16 (GPU; products summed in fp32) or fp64 (CPU). A zero matrix stays one.
// Source: K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.   Errors: DTypeError.
void newton_schulz(Context& ctx, Tensor x);

struct MuonState {
  Tensor weight;    // (G, P, C)  fp32, fp64 (CPU), or bf16 beside `low`
  Tensor momentum;  // (G, P, C)  in the dtype of the master, on the GPU also bf16
  Tensor low = {};  // (G, P, C, 2)  U8: the rest of the masters of bf16 weights; see split_weights.h
};

// Rows [begin, end) of each of the G groups: together one matrix (G (end - begin), C).
struct MuonRows {
  int64_t begin, end;
};

struct MuonStep {
  double lr, momentum;
  double update_rms;      // of an update at lr 1 whose singular values are all 1
  double weight_decay;    // decoupled
  double gradient_scale;  // multiplies every gradient first (clipping)
  DType products;         // of the Newton-Schulz steps: that of the master, on the GPU also bf16
};

// One Muon update of the matrix (M, C) that the rows are; all other rows stay what they are:
//   g = gradient_scale * gradient;   momentum <- mu momentum + g;   x = newton_schulz(g + mu momentum)
//   weight <- weight - lr (update_rms sqrt(max(M, C)) x + weight_decay * weight)
// of the masters that weight and low hold;   gradient (G, P, C) in their dtype, or bf16 beside bf16 weights (GPU)
// Source: Jordan et al. 2024; Moonlight, arXiv 2502.16982 (scale and decay).   Errors: ShapeError, DTypeError.
void muon_update(Context& ctx, MuonState state, const Tensor& gradient, MuonRows rows, const MuonStep& step);

}  // namespace braid
