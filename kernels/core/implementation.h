#pragma once

#include <string>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// Which code serves an operator: for the start of a run, which prints it and lets nothing slow run unasked, and for
// tests. An operator that can be computed in several ways has x_implementation beside it, which asks what its dispatch
// asks; tensors need shapes and dtypes there, no memory.
struct Implementation {
  std::string name;      // "chunked, tensor cores, heads of 128"; "CPU"
  std::string why_slow;  // empty, or why a faster way does not serve
};

// Of operators that pass over rows of so many elements: norms, gathers, sums, SwiGLU, losses.
Implementation row_pass_implementation(const Context& ctx, DType activation, int64_t width);

}  // namespace braid
