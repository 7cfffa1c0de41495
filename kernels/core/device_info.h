#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"

namespace braid {

// What a figure or a log names a device by.
struct DeviceInfo {
  std::string name;    // "NVIDIA H200", "CPU"
  std::string driver;  // "580.65.06, CUDA 13.0"; empty for the CPU
};
DeviceInfo device_info(const Context& ctx);

// A kind of GPU, as far as operators ask when they choose kernels and cut work: enough to count what they would take.
struct GpuModel {
  std::string name;
  int compute_capability, num_sms;
  int most_shared_bytes;  // that a block may ask for
  int64_t memory_bytes;   // that a process can use when nothing else is on the card
};
const std::vector<GpuModel>& known_gpus();
// By its name ("h100", "h200", "a100"), or an H100 with this much memory ("80GB", "141GiB"), in any case.   Errors:
// ConfigError, naming those that are known.
GpuModel gpu_model(const std::string& text);
// What a context on a GPU takes for cuBLAS.
inline constexpr int64_t kCublasWorkspaceBytes = int64_t{32} << 20;

// Does a build for `architectures`, a list as CMAKE_CUDA_ARCHITECTURES takes it ("80;90a"), hold code for a GPU of this
// compute capability (90 for 9.0)? Code of an architecture runs on later ones too, by its PTX, unless a suffix says
// otherwise: 90a on 9.0 alone, 100f on 10.x, 80-real on 8.x. True for what is no number, such as "native".
bool has_code_for(std::string_view architectures, int compute_capability);

}  // namespace braid
