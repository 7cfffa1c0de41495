#include "kernels/cpu_products.h"

#include <omp.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <sstream>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/processor.h"
#include "kernels/cpu/product_library.h"
#include "kernels/cpu/register_gemm.h"

namespace braid {
namespace {

using Clock = std::chrono::steady_clock;

std::string processor_name() {
  Loud<std::istringstream> file(file_text("/proc/cpuinfo"));
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "CPU";
}

template <class Work>
double shortest_s(Work&& work) {
  constexpr int kTurns = 7;  // the first ones warm up; the shortest is the one that nothing else disturbed
  double shortest = 1e30;
  for (int turn = 0; turn < kTurns; ++turn) {
    const auto start = Clock::now();
    work();
    shortest = std::min(shortest, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return shortest;
}

// A factor of a product, op(x) (rows, columns).
cpu::GemmMatrix<float> factor(const std::vector<float>& x, int64_t rows, int64_t columns, bool transposed) {
  return {x.data(), transposed ? rows : columns, transposed};
}

// OpenMP ends the program if it cannot start a thread, and oneDNN 2.6 writes to address 0 if it has no memory for the
// code that it makes. So whether there is enough for both is looked at first.
void check_room_for_libraries() {
  constexpr size_t kCodeBytes = size_t{64} << 20, kBuffersPerThread = size_t{16} << 20;
  pthread_attr_t attributes;
  size_t stack_bytes = 0;
  if (pthread_getattr_default_np(&attributes) == 0) {
    pthread_attr_getstacksize(&attributes, &stack_bytes);
    pthread_attr_destroy(&attributes);
  }
  const size_t threads = static_cast<size_t>(omp_get_max_threads());
  const size_t bytes = (threads - 1) * stack_bytes + kCodeBytes + threads * kBuffersPerThread;
  void* room = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check<OutOfMemoryError>(room != MAP_FAILED, "no memory left for the products of matrices, threads: ", threads);
  munmap(room, bytes);
}

}  // namespace

CpuProducts cpu_products() {
  const cpu::VectorUnit offered = cpu::widest_vectors();
  CpuProducts products = {processor_name(), cpu::library::name(), cpu::library::kernel(), cpu::library::why_slow()};
  if (products.why_slow.empty() && cpu::kVectorBytes < offered.bytes)
    products.why_slow = concat("Braid's own code was built without the ", offered.name,
                               " of this CPU: build it here, with BRAID_NATIVE=ON");
  return products;
}

CpuProductRate measure_cpu_products() {
  constexpr int64_t kSize = 512, kRounds = 20'000;
  std::vector<float> a(kSize * kSize), b(kSize * kSize), c(kSize * kSize);
  for (size_t i = 0; i < a.size(); ++i) a[i] = float(i % 37) / 37, b[i] = float(i % 41) / 41;
  const double product_s = shortest_s([&] {
    cpu::gemm({kSize, kSize, kSize}, 1.0f, factor(a, kSize, kSize, false), factor(b, kSize, kSize, true), 0.0f,
              c.data(), kSize);
  });
  const cpu::VectorUnit vectors = cpu::widest_vectors();
  volatile float used = 0;
  const double peak_s = shortest_s([&] { used = vectors.multiply_adds(kRounds); });
  const double flop_per_vector = 2.0 * vectors.bytes / sizeof(float);
  return {2.0 * kSize * kSize * kSize / product_s * 1e-9,
          double(kRounds) * cpu::kMultiplyAddsPerRound * flop_per_vector / peak_s * 1e-9};
}

void reserve_cpu_product_memory() {
  // At least as large as any tile that operators form; the library cuts what is longer.
  constexpr int64_t kM = 256, kN = 512, kK = 2048;
  check_room_for_libraries();
  std::exception_ptr failure;
#pragma omp parallel
  {
    try {
      const std::vector<float> a(kM * kK), b(kK * kN);
      std::vector<float> c(kM * kN);
      // What a thread gave back once, the C library keeps for it from then on: hence twice.
      for (int turn = 0; turn < 2; ++turn)
        for (bool transpose_a : {false, true})
          for (bool transpose_b : {false, true})
            cpu::gemm({kM, kN, kK}, 1.0f, factor(a, kM, kK, transpose_a), factor(b, kK, kN, transpose_b), 0.0f,
                      c.data(), kN);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (!failure) return;
  try {
    std::rethrow_exception(failure);
  } catch (const std::bad_alloc&) {
    throw OutOfMemoryError("no memory left for the products of matrices on the CPU");
  }
}

}  // namespace braid
