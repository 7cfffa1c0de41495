#pragma once

#include <string>
#include <vector>

#include "model/parameters.h"

namespace braid {

// A tensor of a model folder.
struct StoredTensor {
  std::string name;
  Shape shape;
};

// Whether a parameter holds the routed experts of a layer, one below the other along its first axis.
bool holds_routed_experts(const Parameter& parameter);

// The tensors that a folder with one tensor per expert and projection holds for a parameter; one after the other they
// are its elements in row-major order. `experts.gate_up_proj` (E, 2F, C) is gate_proj and up_proj (F, C) of expert 0,
// then of expert 1, ...; `experts.down_proj` (E, C, F) is down_proj (C, F) of each; any other parameter is itself.
std::vector<StoredTensor> stored_tensors(const Parameter& parameter);

}  // namespace braid
