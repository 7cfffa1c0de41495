#pragma once

#include <cstdint>

#include "kernels/cpu/processor.h"

namespace braid::cpu {

// GCC takes the size of a dependent vector type only inside a class.
template <int kBytes>
struct FloatsOf {
  typedef float type __attribute__((vector_size(kBytes)));
};

// Inlined into functions for the instructions in question. As many sums as hide the latency of a multiply-add.
template <int kBytes>
[[gnu::always_inline]] inline float multiply_adds(int64_t rounds) {
  using Vector = typename FloatsOf<kBytes>::type;
  Vector sums[kMultiplyAddsPerRound];
  for (int i = 0; i < kMultiplyAddsPerRound; ++i) sums[i] = Vector{} + static_cast<float>(i);
  const Vector factor = Vector{} + 0.999f, addend = Vector{} + 0.001f;
  for (int64_t round = 0; round < rounds; ++round)
    for (Vector& sum : sums) sum = sum * factor + addend;
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  return total;
}

}  // namespace braid::cpu
