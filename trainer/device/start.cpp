#include "trainer/device/start.h"

#include <omp.h>

#include <chrono>

#include "kernels/core/device_info.h"
#include "kernels/core/memory.h"
#include "kernels/cpu_products.h"
#include "parallel/rank_text.h"
#include "trainer/device/implementations.h"
#include "trainer/device/self_check.h"

namespace braid {
namespace {

void start_on_cpu(Context& ctx, const ProcessMesh& mesh, std::FILE* log) {
  all_or_none(ctx, mesh.world(), [] {
    reserve_cpu_product_memory();
    return std::string();
  });
  if (mesh.rank() != 0 || !log) return;
  const CpuProducts products = cpu_products();
  const CpuProductRate rate = measure_cpu_products();
  std::fprintf(log, "device %s, %d thread(s) per rank; products: %s, %s, %.0f of %.0f GFLOP/s of a thread (%.0f %%)\n",
               products.processor.c_str(), omp_get_max_threads(), products.library.c_str(), products.kernel.c_str(),
               rate.gflops, rate.peak_gflops, rate.gflops / rate.peak_gflops * 100);
  if (!products.why_slow.empty())
    std::fprintf(log, "products are slower than they could be: %s\n", products.why_slow.c_str());
  std::fflush(log);
}

}  // namespace

void start_on_device(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, SelfCheck check, std::FILE* log) {
  if (!ctx.on_cuda()) return start_on_cpu(ctx, mesh, log);
  using Clock = std::chrono::steady_clock;
  const bool writes = mesh.rank() == 0 && log;
  std::vector<OperatorImplementation> implementations;
  all_or_none(ctx, mesh.world(), [&] {
    implementations = operator_implementations(ctx, config);
    return std::string();
  });
  if (writes) {
    const DeviceInfo device = device_info(ctx);
    const double gib = double(int64_t{1} << 30);
    const GpuMemory memory = gpu_memory();
    std::fprintf(log, "device %s, driver %s, %.1f of %.1f GiB free\n", device.name.c_str(), device.driver.c_str(),
                 double(memory.free_bytes) / gib, double(memory.total_bytes) / gib);
    for (const OperatorImplementation& i : implementations)
      std::fprintf(log, "  %-17s %s\n", i.name.c_str(), i.how.name.c_str());
    std::fflush(log);
  }
  all_or_none(ctx, mesh.world(), [&] {
    check_nothing_slow(implementations, config);
    return std::string();
  });
  if (check == SelfCheck::kNo) return;
  const auto begin = Clock::now();
  const int64_t count = self_check(ctx, mesh.world(), config);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  if (writes)
    std::fprintf(log, "self-check: %d groups of operators agree with the CPU (%.1f s)\n", int(count), seconds);
}

std::string device_text(const Context& ctx) {
  if (ctx.on_cuda()) return device_info(ctx).name;
  const int threads = omp_get_max_threads();
  return concat(cpu_products().processor, ", ", threads, threads == 1 ? " thread" : " threads");
}

}  // namespace braid
