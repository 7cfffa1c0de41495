#include "kernels/core/device_info.h"

#include <sstream>

#include "kernels/core/file_text.h"
#include "kernels/core/stream.h"
#include "kernels/cuda/gpu.h"

namespace braid::cuda {
namespace {

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ..." has one word that begins with a digit and holds a
// dot: the version. The CUDA runtime does not tell it.
std::string kernel_module_version() {
  const std::string text = file_text("/proc/driver/nvidia/version");
  Loud<std::istringstream> words(text.substr(0, text.find('\n')));
  for (std::string word; words >> word;)
    if (word[0] >= '0' && word[0] <= '9' && word.find('.') != std::string::npos) return word;
  return "unknown";
}

}  // namespace

DeviceInfo device_info(const Context& ctx) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, ctx.gpu().device_index), "cudaGetDeviceProperties");
  int cuda = 0;
  check_cuda(cudaDriverGetVersion(&cuda), "cudaDriverGetVersion");
  return {properties.name, concat(kernel_module_version(), ", CUDA ", cuda / 1000, '.', cuda % 1000 / 10)};
}

}  // namespace braid::cuda
