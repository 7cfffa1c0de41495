#pragma once

#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"

namespace braid {

// What the balance and z losses add to the gradient of one layer's router: see router_backward.
struct BalanceGradient {
  Tensor d_prob;  // (B, E) F64
  double z_weight = 0;
};

// What a layer needs of the pass through the model that it is part of, beside its own tensors.
struct LayerPass {
  const Segments& segments;
  BalanceGradient balance = {};  // read by backward alone
};

}  // namespace braid
