#pragma once

#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"
#include "kernels/matmul.h"
#include "model/recompute.h"
#include "parallel/context_group.h"

namespace braid {

// What the balance and z losses add to the gradient of one layer's router: see router_backward.
struct BalanceGradient {
  Tensor d_prob;  // (B, E) F64
  double z_weight = 0;
};

struct MixerCache;  // model/mixer.h

// What a layer needs of the pass through the model that it is part of, beside its own tensors.
struct LayerPass {
  const Segments& segments;
  // Read by backward alone.
  BalanceGradient balance = {};
  Accumulate expert_gradients = Accumulate::kYes;  // of the weights of the experts: add to them, or overwrite them
  Recompute recompute = Recompute::kNone;          // what backward makes again first, as it was planned
  const ContextGroup* context = nullptr;           // where rows are shares; see Segments for what lies beyond them
  // For a text that comes in pieces: what the mixer keeps of the tokens before this one, brought up to date by forward.
  // The piece is then one document of one row.
  MixerCache* cache = nullptr;
};

}  // namespace braid
