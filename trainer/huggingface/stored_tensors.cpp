#include "trainer/huggingface/stored_tensors.h"

#include <string_view>

namespace braid {
namespace {

constexpr std::string_view kGateUp = ".experts.gate_up_proj", kDown = ".experts.down_proj";

}  // namespace

bool holds_routed_experts(const Parameter& parameter) {
  return parameter.name.ends_with(kGateUp) || parameter.name.ends_with(kDown);
}

std::vector<StoredTensor> stored_tensors(const Parameter& parameter) {
  if (!holds_routed_experts(parameter)) return {{parameter.name, parameter.shape}};
  const bool is_down = parameter.name.ends_with(kDown);
  const std::string experts = parameter.name.substr(0, parameter.name.rfind('.') + 1);
  const int64_t E = parameter.shape[0], rows = parameter.shape[1], columns = parameter.shape[2];
  std::vector<StoredTensor> tensors;
  for (int64_t e = 0; e < E; ++e) {
    const std::string expert = experts + std::to_string(e) + ".";
    if (is_down) {
      tensors.push_back({expert + "down_proj.weight", {rows, columns}});
    } else {
      tensors.push_back({expert + "gate_proj.weight", {rows / 2, columns}});
      tensors.push_back({expert + "up_proj.weight", {rows / 2, columns}});
    }
  }
  return tensors;
}

}  // namespace braid
