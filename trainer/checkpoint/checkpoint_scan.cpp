#include "trainer/checkpoint/checkpoint_scan.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>

#include "kernels/core/float_types.h"

namespace braid {
namespace {

using LogicalTensor = CheckpointReader::LogicalTensor;

constexpr int64_t kBlockElements = int64_t{1} << 17;

// A logical tensor of a checkpoint, one block of elements in memory at a time.
class BlockReader {
 public:
  BlockReader(const CheckpointReader& checkpoint, const LogicalTensor& tensor)
      : checkpoint_(checkpoint), tensor_(tensor), memory_(std::min(kBlockElements, tensor.shape.numel())) {}

  void load(int64_t begin, int64_t end) {
    block_ = Tensor(memory_.data(), tensor_.dtype, {end - begin});
    CheckpointSlice slice{tensor_.name, tensor_.shape, begin, end, block_};
    checkpoint_.read(slice);
  }
  const Tensor& block() const { return block_; }
  double at(int64_t i) const { return number_at(block_, i); }

 private:
  const CheckpointReader& checkpoint_;
  const LogicalTensor& tensor_;
  std::vector<uint64_t> memory_;  // 8 bytes hold an element of every dtype
  Tensor block_;
};

// The first element of other bits of two blocks that begin at element `begin`; -1 if there is none.
int64_t first_difference(const Tensor& a, const Tensor& b, int64_t begin) {
  const auto *x = static_cast<const char*>(a.raw()), *y = static_cast<const char*>(b.raw());
  const auto at = std::mismatch(x, x + a.bytes(), y).first;
  return at == x + a.bytes() ? -1 : begin + (at - x) / size_of(a.dtype());
}

// body(begin, end) for consecutive blocks of a tensor
template <class Body>
void for_each_block(const LogicalTensor& tensor, Body&& body) {
  const int64_t numel = tensor.shape.numel();
  for (int64_t begin = 0; begin < numel; begin += kBlockElements) body(begin, std::min(begin + kBlockElements, numel));
}

std::string description(const LogicalTensor& tensor) {
  return concat(name_of(tensor.dtype), ' ', tensor.shape.to_string());
}

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// Of two tensors of the same dtype and shape; `first_other` is the first element of other bits, -1 if there is none.
double relative_rms(const CheckpointReader& a, const CheckpointReader& b, const LogicalTensor& tensor,
                    int64_t& first_other) {
  BlockReader x(a, tensor), y(b, tensor);
  double difference = 0, norm = 0;
  first_other = -1;
  for_each_block(tensor, [&](int64_t begin, int64_t end) {
    x.load(begin, end);
    y.load(begin, end);
    if (first_other < 0) first_other = first_difference(x.block(), y.block(), begin);
    for (int64_t i = 0; i < end - begin; ++i) {
      const double d = x.at(i) - y.at(i);
      difference += d * d;
      norm += x.at(i) * x.at(i);
    }
  });
  if (difference == 0) return 0;
  const double relative = std::sqrt(difference / norm);
  return std::isnan(relative) ? kInfinite : relative;
}

}  // namespace

std::vector<TensorNorm> check_finite(const CheckpointReader& checkpoint) {
  std::map<std::string, double> squares;
  checkpoint.visit([&](const LogicalTensor& tensor, int64_t begin, const Tensor& block) {
    if (!is_float(tensor.dtype)) return;
    double sum = 0;
    for (int64_t i = 0; i < block.numel(); ++i) {
      const double x = number_at(block, i);
      check<CheckpointError>(std::isfinite(x), checkpoint.path(), ": tensor ", tensor.name, " element ", begin + i,
                             " is ", x);
      sum += x * x;
    }
    squares[tensor.name] += sum;
  });
  std::vector<TensorNorm> norms;
  for (const auto& [name, sum] : squares)
    norms.push_back({name, std::sqrt(sum / double(checkpoint.find(name)->shape.numel()))});
  return norms;
}

std::vector<TensorDifference> compare_checkpoints(const CheckpointReader& a, const CheckpointReader& b) {
  std::map<std::string, std::pair<const LogicalTensor*, const LogicalTensor*>> pairs;
  for (const LogicalTensor& tensor : a.tensors()) pairs[tensor.name].first = &tensor;
  for (const LogicalTensor& tensor : b.tensors()) pairs[tensor.name].second = &tensor;
  std::vector<TensorDifference> differences;
  for (const auto& [name, pair] : pairs) {
    const auto [x, y] = pair;
    if (!x || !y) {
      differences.push_back({name, x ? "only in the first" : "only in the second", kInfinite});
    } else if (x->dtype != y->dtype || x->shape != y->shape) {
      differences.push_back({name, description(*x) + " against " + description(*y), kInfinite});
    } else {
      int64_t first = -1;
      const double relative = relative_rms(a, b, *x, first);
      if (first >= 0)
        differences.push_back(
            {name, concat("relative RMS difference ", relative, ", first at element ", first), relative, first});
    }
  }
  return differences;
}

}  // namespace braid
