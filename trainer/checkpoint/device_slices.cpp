#include "trainer/checkpoint/device_slices.h"

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"

namespace braid {
namespace {

// Host memory of the size of a tensor.
Tensor host_tensor(const Tensor& like, std::shared_ptr<std::byte>& memory) {
  memory = allocate_memory(Device::kCpu, like.bytes());
  check<OutOfMemoryError>(memory != nullptr, "no host memory left for ", like.bytes(), " bytes of a checkpoint");
  return Tensor(memory.get(), like.dtype(), like.shape());
}

}  // namespace

void read_slice(Context& ctx, const CheckpointReader& reader, CheckpointSlice& slice) {
  if (slice.data.device() == Device::kCpu) return reader.read(slice);
  std::shared_ptr<std::byte> memory;
  CheckpointSlice host = slice;
  host.data = host_tensor(slice.data, memory);
  reader.read(host);
  copy(ctx, slice.data, host.data);
}

HostSlices::HostSlices(Context& ctx, std::vector<CheckpointSlice> slices) : slices_(std::move(slices)) {
  for (CheckpointSlice& slice : slices_) {
    if (slice.data.device() == Device::kCpu) continue;
    const Tensor device = slice.data;
    slice.data = host_tensor(device, memory_.emplace_back());
    copy(ctx, slice.data, device);
  }
}

}  // namespace braid
