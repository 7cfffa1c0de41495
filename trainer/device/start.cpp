#include "trainer/device/start.h"

#include <chrono>

#include "kernels/core/device_info.h"
#include "kernels/core/memory.h"
#include "parallel/rank_text.h"
#include "trainer/device/implementations.h"
#include "trainer/device/self_check.h"

namespace braid {

void start_on_device(Context& ctx, const ProcessMesh& mesh, const RunConfig& config, SelfCheck check, std::FILE* log) {
  if (!ctx.on_cuda()) return;
  using Clock = std::chrono::steady_clock;
  const bool writes = mesh.rank() == 0;
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

}  // namespace braid
