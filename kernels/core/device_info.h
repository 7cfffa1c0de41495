#pragma once

#include <string>

#include "kernels/core/context.h"

namespace braid {

// What a figure or a log names a device by.
struct DeviceInfo {
  std::string name;    // "NVIDIA H200", "CPU"
  std::string driver;  // "580.65.06, CUDA 13.0"; empty for the CPU
};
DeviceInfo device_info(const Context& ctx);

}  // namespace braid
