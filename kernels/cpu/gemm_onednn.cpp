#include <omp.h>

#include <oneapi/dnnl/dnnl.h>
#include <cstdlib>
#include <string_view>

#include "kernels/core/error.h"
#include "kernels/cpu/processor.h"
#include "kernels/cpu/product_library.h"

namespace braid::cpu::library {
namespace {

// oneDNN cuts a product among as many threads as OpenMP would give it; the result must not depend on their number.
class OneThread {
 public:
  OneThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

// Of what oneDNN uses: its values are sets of bits, larger ones hold those of what they extend.
bool uses(dnnl_cpu_isa_t isa) { return (dnnl_get_effective_cpu_isa() & isa) == isa; }

}  // namespace

void gemm(GemmShape s, float alpha, GemmMatrix<float> a, GemmMatrix<float> b, float beta, float* c, int64_t stride) {
  const OneThread one_thread;
  const dnnl_status_t status = dnnl_sgemm(a.transposed ? 'T' : 'N', b.transposed ? 'T' : 'N', s.m, s.n, s.k, alpha,
                                          a.data, a.stride, b.data, b.stride, beta, c, stride);
  check<OutOfMemoryError>(status != dnnl_out_of_memory, "no memory left for a product of ", s.m, " x ", s.n, " x ",
                          s.k);
  check<ErrorOf<ExitCode::kInternal>>(status == dnnl_success, "oneDNN's product failed with status ", int(status));
}

std::string name() {
  const dnnl_version_t* version = dnnl_version();
  return concat("oneDNN ", version->major, ".", version->minor, ".", version->patch);
}

std::string kernel() {
  if (uses(dnnl_cpu_isa_avx512_core)) return "AVX-512";
  if (uses(dnnl_cpu_isa_avx2)) return "AVX2";
  return "SSE";
}

std::string why_slow() {
  const VectorUnit offered = widest_vectors();
  if (kernel() == offered.name) return "";
  for (const char* variable : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"})
    if (const char* value = std::getenv(variable))
      return concat(variable, "=", value, " keeps it from the ", offered.name, " of this CPU: unset it");
  return concat("it does not use the ", offered.name, " of this CPU: a newer oneDNN may");
}

}  // namespace braid::cpu::library
