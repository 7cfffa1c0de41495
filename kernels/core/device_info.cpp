#include "kernels/core/device_info.h"

#include <algorithm>
#include <charconv>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
decltype(braid::device_info) device_info;
}

DeviceInfo device_info(const Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::device_info(ctx);
  }
  return {"CPU", ""};
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
