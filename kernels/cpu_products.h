#pragma once

#include <string>

namespace braid {

// What multiplies fp32 matrices on this CPU: for the header of a run, so that nothing is slow unsaid.
struct CpuProducts {
  std::string processor;  // as the operating system names it
  std::string library;    // "oneDNN 2.6.3" for larger products; Braid's own kernels make the others
  std::string kernel;     // the instructions that it uses: "AVX-512"
  std::string why_slow;   // empty, or what keeps it from what the CPU offers, and the remedy
};
CpuProducts cpu_products();

// One thread, measured in a few milliseconds: a product of 512^3, and multiply-adds that wait for no memory.
struct CpuProductRate {
  double gflops = 0, peak_gflops = 0;
};
CpuProductRate measure_cpu_products();

// Lets every thread take the memory that products need beside their operands, so that none is asked for later.
// Errors: OutOfMemoryError.
void reserve_cpu_product_memory();

}  // namespace braid
