#include "kernels/core/error.h"
#include "kernels/cpu/processor.h"
#include "kernels/cpu/product_library.h"
#include "kernels/cpu/register_gemm.h"

namespace braid::cpu::library {

void gemm(GemmShape s, float alpha, GemmMatrix<float> a, GemmMatrix<float> b, float beta, float* c, int64_t stride) {
  RegisterGemm<float>::run(s, alpha, a, b, beta, c, stride);
}

std::string name() { return "Braid's own kernels"; }
std::string kernel() { return concat(kVectorBytes * 8, "-bit vectors"); }
std::string why_slow() {
  return library_for_this_processor().empty()
             ? ""
             : concat("this build is without ", library_for_this_processor(), ", which is faster here");
}

}  // namespace braid::cpu::library
