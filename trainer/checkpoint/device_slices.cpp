#include "trainer/checkpoint/device_slices.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/split_weights.h"

namespace braid {
namespace {

constexpr int64_t kStagedElements = int64_t{1} << 24;  // on their way to a GPU at a time
constexpr int64_t kJoinedElements = int64_t{1} << 22;  // masters that exist whole on a device at a time

bool lies_on_host(const CheckpointSlice& slice) {
  return slice.data.device() == Device::kCpu && !slice.split_weight.defined();
}

// Elements [begin, end) of those that a slice has.
CheckpointSlice part_of(const CheckpointSlice& slice, int64_t begin, int64_t end) {
  const int64_t count = slice.data.numel();
  const auto rows = [&](const Tensor& tensor, Shape shape) { return tensor.view(shape).rows(begin, end); };
  CheckpointSlice part{slice.name, slice.shape, slice.begin + begin, slice.begin + end, {}};
  if (!slice.split_weight.defined()) {
    part.data = rows(slice.data, {count});
    return part;
  }
  part.data = Tensor(nullptr, slice.data.dtype(), {end - begin}, slice.data.device());
  part.split_weight = rows(slice.split_weight, {count});
  part.split_low = rows(slice.split_low, {count, 2});
  return part;
}

}  // namespace

void copy_slice(Context& ctx, Tensor to, const CheckpointSlice& slice) {
  if (!slice.split_weight.defined()) return copy(ctx, to, slice.data);
  const int64_t count = slice.data.numel();
  const Tensor whole = to.view({count}), weight = slice.split_weight.view({count}),
               low = slice.split_low.view({count, 2});
  Scratch scratch(ctx);
  const int64_t most = std::min(kJoinedElements, count);
  const Tensor masters = scratch.tensor({most}, slice.data.dtype());
  const Tensor staged = low.device() == weight.device() ? Tensor() : scratch.tensor({most, 2}, low.dtype());
  for (int64_t at = 0; at < count; at += kJoinedElements) {
    const int64_t end = std::min(count, at + kJoinedElements);
    const Tensor part = masters.rows(0, end - at);
    Tensor low_part = low.rows(at, end);
    if (staged.defined()) {  // offloaded
      copy(ctx, staged.rows(0, end - at), low_part);
      low_part = staged.rows(0, end - at);
    }
    join_weights(ctx, part, weight.rows(at, end), low_part);
    copy(ctx, whole.rows(at, end), part);
  }
}

void read_slice(Context& ctx, const CheckpointReader& reader, CheckpointSlice& slice) {
  if (slice.data.device() == Device::kCpu) return reader.read(slice);
  const int64_t count = slice.data.numel();
  const Tensor device = slice.data.view({count});
  std::vector<std::byte> staging(std::min(kStagedElements, count) * size_of(device.dtype()));
  for (int64_t at = 0; at < count; at += kStagedElements) {
    const int64_t n = std::min(kStagedElements, count - at);
    CheckpointSlice part{slice.name, slice.shape, slice.begin + at, slice.begin + at + n,
                         Tensor(staging.data(), device.dtype(), {n})};
    reader.read(part);
    copy(ctx, device.rows(at, at + n), part.data);
  }
}

void visit_on_host(Context& ctx, const std::vector<CheckpointSlice>& slices,
                   const std::function<void(const Tensor& part)>& body) {
  int64_t bytes = 0;
  for (const CheckpointSlice& slice : slices)
    if (!lies_on_host(slice)) bytes = std::max(bytes, std::min(kStagingBytes, slice.data.bytes()));
  const auto staging = allocate_memory(Device::kCpu, bytes);
  check<OutOfMemoryError>(staging != nullptr, "no host memory left for ", bytes, " bytes on their way to a checkpoint");
  for (const CheckpointSlice& slice : slices) {
    if (lies_on_host(slice)) {
      body(slice.data);
      continue;
    }
    const DType dtype = slice.data.dtype();
    const int64_t count = slice.data.numel(), most = kStagingBytes / size_of(dtype);
    for (int64_t at = 0; at < count; at += most) {
      const int64_t end = std::min(count, at + most);
      const Tensor part(staging.get(), dtype, {end - at});
      copy_slice(ctx, part, part_of(slice, at, end));
      body(part);
    }
  }
}

}  // namespace braid
