#include "trainer/checkpoint/device_slices.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/split_weights.h"

namespace braid {
namespace {

constexpr int64_t kStagedElements = int64_t{1} << 24;  // on their way to a GPU at a time
constexpr int64_t kJoinedElements = int64_t{1} << 22;  // masters that exist whole on a device at a time

// Host memory of the size of a tensor.
Tensor host_tensor(const Tensor& like, std::shared_ptr<std::byte>& memory) {
  memory = allocate_memory(Device::kCpu, like.bytes());
  check<OutOfMemoryError>(memory != nullptr, "no host memory left for ", like.bytes(), " bytes of a checkpoint");
  return Tensor(memory.get(), like.dtype(), like.shape());
}

}  // namespace

void copy_slice(Context& ctx, Tensor to, const CheckpointSlice& slice) {
  if (!slice.split_weight.defined()) return copy(ctx, to, slice.data);
  const int64_t count = slice.data.numel();
  const Tensor whole = to.view({count}), weight = slice.split_weight.view({count}),
               low = slice.split_low.view({count, 2});
  Scratch scratch(ctx);
  const Tensor masters = scratch.tensor({std::min(kJoinedElements, count)}, slice.data.dtype());
  for (int64_t at = 0; at < count; at += kJoinedElements) {
    const int64_t end = std::min(count, at + kJoinedElements);
    const Tensor part = masters.rows(0, end - at);
    join_weights(ctx, part, weight.rows(at, end), low.rows(at, end));
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

HostSlices::HostSlices(Context& ctx, std::vector<CheckpointSlice> slices) : slices_(std::move(slices)) {
  for (CheckpointSlice& slice : slices_) {
    if (slice.data.device() == Device::kCpu && !slice.split_weight.defined()) continue;
    const Tensor host = host_tensor(slice.data, memory_.emplace_back());
    copy_slice(ctx, host, slice);
    slice = {slice.name, slice.shape, slice.begin, slice.end, host};
  }
}

}  // namespace braid
