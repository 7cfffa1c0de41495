#pragma once

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

// The RMS norm of rms_norm.h where y or d_y may be columns of wider rows; what rms_norm and mtp_inputs share.
namespace braid::cuda {

// Columns [first, first + C) of rows with `row_elements` elements.
struct Columns {
  int64_t first = 0, row_elements = 0;
};

void norm_forward(Context& ctx, Tensor& y, Columns y_columns, Tensor& rstd, const Tensor& x, const Tensor& weight,
                  double eps);

enum class InputGradient { kOverwrite, kAdd };
void norm_backward(Context& ctx, Tensor& d_x, InputGradient mode, Tensor& d_weight, const Tensor& d_y,
                   Columns d_y_columns, const Tensor& x, const Tensor& weight, const Tensor& rstd);

}  // namespace braid::cuda
