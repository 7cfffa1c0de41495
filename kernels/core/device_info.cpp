#include "kernels/core/device_info.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::device_info) device_info;
}

constexpr int64_t kGiB = int64_t{1} << 30;

DeviceInfo device_info(const Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::device_info(ctx);
  }
  return {"CPU", ""};
}

const std::vector<GpuModel>& known_gpus() {
  // What cudaGetDeviceProperties and cudaMemGetInfo say.
  static const std::vector<GpuModel> gpus = {{"a100", 80, 108, 166912, 79 * kGiB + kGiB / 4},
                                             {"h100", 90, 132, 232448, 79 * kGiB + kGiB / 10},
                                             {"h200", 90, 132, 232448, 139 * kGiB + kGiB * 8 / 10}};
  return gpus;
}

GpuModel gpu_model(const std::string& text) {
  const auto is_same = [](std::string_view a, std::string_view b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
  };
  std::string names;
  for (const GpuModel& gpu : known_gpus()) {
    if (is_same(gpu.name, text)) return gpu;
    names += gpu.name + ", ";
  }
  double size = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  const std::string_view unit = error == std::errc() ? std::string_view(rest) : std::string_view();
  const bool is_decimal = is_same(unit, "GB");
  check<ConfigError>(size > 0 && size < 1e6 && (is_decimal || is_same(unit, "GiB")), "--device ", text, ": is none of ",
                     names, "nor a size like 80GB or 141GiB");
  GpuModel gpu = gpu_model("h100");
  gpu.name = text;
  gpu.memory_bytes = static_cast<int64_t>(size * (is_decimal ? 1e9 : double(kGiB)));
  return gpu;
}

bool has_code_for(std::string_view architectures, int compute_capability) {
  for (size_t begin = 0; begin <= architectures.size();) {
    const size_t end = std::min(architectures.find(';', begin), architectures.size());
    const std::string_view entry = architectures.substr(begin, end - begin);
    begin = end + 1;
    int number = 0;
    const auto [rest, error] = std::from_chars(entry.data(), entry.data() + entry.size(), number);
    if (error != std::errc()) {
      if (!entry.empty()) return true;
      continue;
    }
    const std::string_view suffix = entry.substr(rest - entry.data());
    const bool later = compute_capability >= number, same_family = compute_capability / 10 == number / 10;
    if (suffix.starts_with('a')) {
      if (compute_capability == number) return true;
    } else if (suffix.starts_with('f') || suffix == "-real") {
      if (later && same_family) return true;
    } else if (later) {
      return true;
    }
  }
  return false;
}

}  // namespace braid
