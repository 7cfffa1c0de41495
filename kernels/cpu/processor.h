#pragma once

#include <cstdint>
#include <string>

namespace braid::cpu {

// The vector instructions of a CPU, from narrow to wide.
struct VectorUnit {
  const char* name;  // "AVX-512"
  int bytes;         // of a vector
  // So many rounds of multiply-adds on vectors that stay in registers; returns their sum, to be used for something.
  float (*multiply_adds)(int64_t rounds);
};
inline constexpr int kMultiplyAddsPerRound = 12;  // vectors

// The widest of the CPU that the program runs on, whatever it was built for.
VectorUnit widest_vectors();

// The library that products are fastest with on this kind of CPU; empty if Braid's own kernels are the best there are.
std::string library_for_this_processor();

}  // namespace braid::cpu
