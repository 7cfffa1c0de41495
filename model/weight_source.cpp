#include "model/weight_source.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/split_weights.h"

namespace braid {
namespace {

constexpr int64_t kStagedElements = int64_t{1} << 24;  // on their way to a GPU at a time
constexpr int64_t kSplitElements = int64_t{1} << 22;   // whose masters exist whole at a time

}  // namespace

void load_elements(Context& ctx, const WeightSource& source, const FlatParameter& p, int64_t begin, int64_t end,
                   Tensor out, Tensor low) {
  const int64_t first = p.global_first + begin - p.offset, count = end - begin;
  if (out.dtype() == DType::kBF16) {
    Scratch scratch(ctx);
    const int64_t most = std::min(kSplitElements, count);
    const Tensor masters = scratch.tensor({most}, DType::kF32);
    const bool low_is_apart = low.defined() && low.device() != out.device();
    const Tensor staged = low_is_apart ? scratch.tensor({most, 2}, low.dtype()) : Tensor();
    for (int64_t at = 0; at < count; at += kSplitElements) {
      const int64_t to = std::min(count, at + kSplitElements);
      const Tensor master = masters.rows(0, to - at);
      load_elements(ctx, source, p, begin + at, begin + to, master);
      const Tensor low_part = low.defined() ? low.rows(at, to) : low;
      const Tensor split_low = low_is_apart ? staged.rows(0, to - at) : low_part;
      split_weights(ctx, out.rows(at, to), split_low, master);
      if (low_is_apart) copy(ctx, low_part, split_low);
    }
    return;
  }
  if (out.device() == Device::kCpu) return source.read_weights(p.parameter, first, first + count, out);
  if (source.make_on_gpu(ctx, p.parameter, first, out)) return;
  std::vector<std::byte> staging(std::min(kStagedElements, count) * size_of(out.dtype()));
  for (int64_t at = 0; at < count; at += kStagedElements) {
    const int64_t n = std::min(kStagedElements, count - at);
    Tensor host(staging.data(), out.dtype(), {n});
    source.read_weights(p.parameter, first + at, first + at + n, host);
    copy(ctx, out.rows(at, at + n), host);
  }
}

void load_weights(Context& ctx, const WeightSource& source, const ParameterLayout& layout, std::vector<Tensor>& flat) {
  for (size_t i = 0; i < flat.size(); ++i) {
    for (const FlatParameter& p : layout.groups()[i].parameters) {
      const int64_t end = p.offset + p.local_numel;
      load_elements(ctx, source, p, p.offset, end, flat[i].rows(p.offset, end));
    }
  }
}

}  // namespace braid
