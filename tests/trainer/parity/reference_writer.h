#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid::testing {

// A reference file before it is written, to be broken by tests.
struct ReferenceContent {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;

  void write(const std::string& path) const {
    std::vector<SafetensorsTensor> entries;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      entries.push_back({name, tensor.dtype(), {}});
      for (int axis = 0; axis < tensor.rank(); ++axis) entries.back().shape.push_back(tensor.dim(axis));
      data.append(static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes()));
    }
    write_bytes(path, make_safetensors_header(entries, metadata) + data);
  }
};

}  // namespace braid::testing
