#pragma once

#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

struct TensorNorm {
  std::string name;
  double rms = 0;  // of its elements
};

// Checks every digest, and throws CheckpointError naming the first element of a floating-point tensor, in the order of
// the files, that is NaN or infinite.   Returns the norms of the floating-point tensors, by name.
std::vector<TensorNorm> check_finite(const CheckpointReader& checkpoint);

struct TensorDifference {
  std::string name;
  std::string what;  // in words
  double relative_rms =
      0;               // sqrt(sum (a - b)^2 / sum a^2); infinite where it has no value or only one side has the tensor
  int64_t first = -1;  // element that has other bits; -1: the tensors cannot be compared
};

// Tensors that are not bit for bit the same, by name, those on one side only included.
std::vector<TensorDifference> compare_checkpoints(const CheckpointReader& a, const CheckpointReader& b);

}  // namespace braid
