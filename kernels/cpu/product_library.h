#pragma once

#include <string>

#include "kernels/cpu/gemm.h"

// Makes fp32 products that are large enough to earn a library's work before it multiplies: gemm_onednn.cpp, or in a
// build without oneDNN gemm_without_library.cpp.
namespace braid::cpu::library {

void gemm(GemmShape shape, float alpha, GemmMatrix<float> a, GemmMatrix<float> b, float beta, float* c, int64_t stride);
std::string name();
std::string kernel();
std::string why_slow();

}  // namespace braid::cpu::library
