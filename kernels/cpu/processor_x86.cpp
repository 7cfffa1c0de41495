#include "kernels/cpu/multiply_adds.h"

namespace braid::cpu {
namespace {

[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] float with_avx512(int64_t rounds) {
  return multiply_adds<64>(rounds);
}
[[gnu::target("avx2,fma")]] float with_avx2(int64_t rounds) { return multiply_adds<32>(rounds); }
float with_sse(int64_t rounds) { return multiply_adds<16>(rounds); }

}  // namespace

VectorUnit widest_vectors() {
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return {"AVX-512", 64, with_avx512};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"AVX2", 32, with_avx2};
  return {"SSE", 16, with_sse};
}

std::string library_for_this_processor() { return "oneDNN"; }

}  // namespace braid::cpu
