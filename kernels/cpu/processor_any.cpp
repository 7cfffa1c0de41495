#include "kernels/cpu/multiply_adds.h"
#include "kernels/cpu/register_gemm.h"

namespace braid::cpu {

VectorUnit widest_vectors() { return {"the build's vectors", kVectorBytes, multiply_adds<kVectorBytes>}; }
std::string library_for_this_processor() { return ""; }

}  // namespace braid::cpu
