#pragma once

#include <cstdint>
#include <utility>

#include "kernels/cpu/processor.h"

namespace braid::cpu {

// GCC takes the size of a dependent vector type only inside a class.
template <int kBytes>
struct FloatsOf {
  typedef float type __attribute__((vector_size(kBytes)));
};

// Inlined into functions for the instructions in question. As many sums as hide the latency of a multiply-add, each
// named by a constant: in a loop over them a sanitizer would look at every one, in memory.
template <int kBytes, size_t... I>
[[gnu::always_inline]] inline float multiply_adds(int64_t rounds, std::index_sequence<I...>) {
  using Vector = typename FloatsOf<kBytes>::type;
  Vector sums[] = {(Vector{} + static_cast<float>(I))...};
  const Vector factor = Vector{} + 0.999f, addend = Vector{} + 0.001f;
  for (int64_t round = 0; round < rounds; ++round) ((sums[I] = sums[I] * factor + addend), ...);
  return (sums[I][0] + ...);
}
template <int kBytes>
[[gnu::always_inline]] inline float multiply_adds(int64_t rounds) {
  return multiply_adds<kBytes>(rounds, std::make_index_sequence<kMultiplyAddsPerRound>());
}

}  // namespace braid::cpu
