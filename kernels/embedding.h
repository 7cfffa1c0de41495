#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Row gather:  y[n] = table[ids[n]];  an id of -1 gives a row of zeros (an MTP position without a next token).
//   y (N, C), table (V, C)  fp32, bf16 (GPU) or fp64 (CPU)
//   ids (N) I64, -1 <= id < V (asserted on the CPU: the data pipeline has checked it)
// Errors: ShapeError, DTypeError, naming the tensor.
void embedding_forward(Context& ctx, Tensor y, const Tensor& ids, const Tensor& table);

//   d_table[v] += sum of d_y[n] over n with ids[n] = v, in ascending n; ids of -1 contribute nothing
//   d_table in the wide dtype of d_y
void embedding_backward(Context& ctx, Tensor d_table, const Tensor& d_y, const Tensor& ids);

}  // namespace braid
