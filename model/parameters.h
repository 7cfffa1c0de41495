#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/enum_names.h"
#include "kernels/core/tensor.h"
#include "model/config.h"

namespace braid {

// Who holds a parameter: every rank the whole, or the ranks of an expert group a share of its first axis each.
enum class Owner { kEveryRank, kExpertRank };
template <>
struct EnumNames<Owner> {
  static constexpr std::array kNames = {"every_rank", "expert_rank"};
};

enum class Init {
  kZero,
  kOne,
  kNormal,            // N(0, initializer_range^2)
  kOutputProjection,  // the same divided by sqrt(2 * num_hidden_layers), if init.scale_output_projections
  kEqualNormRows,     // kNormal, then every row scaled to the norm initializer_range * sqrt(hidden_size)
  kConv,              // U(-a, a), a = 1 / sqrt(taps)
  kLogDecay,          // log U(1, 16)
};
template <>
struct EnumNames<Init> {
  static constexpr std::array kNames = {"zero", "one",      "normal", "output_projection", "equal_norm_rows",
                                        "conv", "log_decay"};
};

enum class Decay {
  kYes,
  kQkNorm,  // zero-centred norms of queries and keys
  kNorm,    // the other zero-centred norms
  kNever,
};
template <>
struct EnumNames<Decay> {
  static constexpr std::array kNames = {"yes", "qk_norm", "norm", "never"};
};

// The linear maps that a matrix packs: its rows are `groups` times the sections one after the other, and the rows of a
// section in all groups are one map, such as the query and the gate of all heads. No sections: the matrix is one map.
struct PackedRows {
  int64_t groups = 1;
  std::vector<int64_t> sections;  // rows of each in a group
};

// One line of the parameter table.
struct Parameter {
  std::string name;  // Hugging Face name; the experts of a layer are one 3-D tensor
  Shape shape;       // of the whole
  Owner owner;
  Init init;
  Decay decay;
  PackedRows packed;  // of the last two axes
};

// Prefixes names while listing the tensors of a part.
template <class Visit>
auto with_prefix(const std::string& prefix, Visit& tensor) {
  return [prefix, &tensor](const std::string& name, Tensor& slot, Shape shape, Owner owner, Init init, Decay decay,
                           const PackedRows& packed = {}) {
    tensor(prefix + name, slot, shape, owner, init, decay, packed);
  };
}

}  // namespace braid
