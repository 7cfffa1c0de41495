#pragma once

#include <string>
#include <string_view>

#include "kernels/core/context.h"

namespace braid {

// What a figure or a log names a device by.
struct DeviceInfo {
  std::string name;    // "NVIDIA H200", "CPU"
  std::string driver;  // "580.65.06, CUDA 13.0"; empty for the CPU
};
DeviceInfo device_info(const Context& ctx);

// Does a build for `architectures`, a list as CMAKE_CUDA_ARCHITECTURES takes it ("80;90a"), hold code for a GPU of this
// compute capability (90 for 9.0)? Code of an architecture runs on later ones too, by its PTX, unless a suffix says
// otherwise: 90a on 9.0 alone, 100f on 10.x, 80-real on 8.x. True for what is no number, such as "native".
bool has_code_for(std::string_view architectures, int compute_capability);

}  // namespace braid
