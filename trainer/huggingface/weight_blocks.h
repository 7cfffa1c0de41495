#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "model/weight_source.h"

namespace braid {

// What import and export take at most, whatever the size of the model: the program, a block of weights, and the names
// and places of all tensors (the released model has 75,944, which take about a third of this).
inline constexpr int64_t kConversionMemoryBytes = int64_t{256} << 20;

// A parameter and the dtype that its weights are to be stored in.
struct TypedParameter {
  Parameter parameter;
  DType dtype;
};

// body(block) for elements [begin, end) of a parameter in order, a block of at most 1 MiB at a time.
void for_each_block(const WeightSource& source, const TypedParameter& typed, int64_t begin, int64_t end,
                    const std::function<void(const Tensor& block)>& body);

// Deals items of these sizes to files in order, as many as fit into max_bytes; a larger one gets a file of its own.
// Returns the first and the last + 1 of each file.
std::vector<std::pair<size_t, size_t>> deal_to_files(const std::vector<int64_t>& item_bytes, int64_t max_bytes);

}  // namespace braid
