#include <chrono>
#include <random>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/cuda/gpu.h"
#include "tests/kernels/cuda/competing_stream.h"

namespace braid::testing {
namespace {

using cuda::check_cuda;
using cuda::check_launch;

// The finaliser of SplitMix64.
__device__ uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Sums of integers do not depend on their order, so this may add atomically.
__global__ void hash_kernel(unsigned long long* hash, const unsigned char* bytes, int64_t count, uint64_t salt) {
  uint64_t sum = 0;
  const int64_t words = count / 4;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < words + count % 4;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t value = i < words ? reinterpret_cast<const uint32_t*>(bytes)[i] : bytes[4 * words + (i - words)];
    sum += mixed((uint64_t(value) << 32 | uint32_t(i)) + salt);
  }
  atomicAdd(hash, static_cast<unsigned long long>(sum));
}

__global__ void spin_kernel(int64_t cycles) {
  const int64_t begin = clock64();
  while (clock64() - begin < cycles) {}
}

}  // namespace

void hash_on_gpu(Context& ctx, Tensor hash, const std::vector<Tensor>& tensors) {
  fill_zero(ctx, hash);
  for (size_t i = 0; i < tensors.size(); ++i) {
    hash_kernel<<<256, 256, 0, cuda::stream_of(ctx)>>>(static_cast<unsigned long long*>(hash.raw()),
                                                       static_cast<const unsigned char*>(tensors[i].raw()),
                                                       tensors[i].bytes(), (i + 1) * 0x9e3779b97f4a7c15);
    check_launch("hash_kernel");
  }
}

void spoil_scratch(Context& ctx, int64_t bytes, int byte) {
  Scratch scratch(ctx);
  Tensor memory = scratch.tensor({bytes}, DType::kU8);
  check_cuda(cudaMemsetAsync(memory.raw(), byte, static_cast<size_t>(bytes), cuda::stream_of(ctx)), "cudaMemsetAsync");
}

CompetingStream::CompetingStream(Context& ctx)
    : thread_([this, device_index = ctx.gpu().device_index] { work(device_index); }) {}

CompetingStream::~CompetingStream() {
  stop_ = true;
  thread_.join();
}

void CompetingStream::work(int device_index) {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int kOutstanding = 4;
  check_cuda(cudaSetDevice(device_index), "cudaSetDevice");
  const std::shared_ptr<std::byte> from = allocate_memory(Device::kCuda, kBytes);
  const std::shared_ptr<std::byte> to = allocate_memory(Device::kCuda, kBytes);
  check<OutOfMemoryError>(from && to, "no GPU memory for the competing stream");
  cudaStream_t stream;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  std::mt19937 random(1);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(kLongestSeconds);
  for (int64_t turn = 0; !stop_ && std::chrono::steady_clock::now() < deadline; ++turn) {
    const size_t bytes = size_t{1} << (10 + random() % 17);  // to 64 MiB
    switch (random() % 4) {
      case 0: check_cuda(cudaMemsetAsync(from.get(), turn & 255, bytes, stream), "cudaMemsetAsync"); break;
      case 1:
        check_cuda(cudaMemcpyAsync(to.get(), from.get(), bytes, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
        break;
      default:  // from a few blocks to more than the GPU holds, for 1 to 100 microseconds each
        spin_kernel<<<1 + random() % 400, 32 << random() % 6, 0, stream>>>(2000 + random() % 200000);
        check_launch("spin_kernel");
    }
    if (turn % kOutstanding == 0) check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    ++turns_;
  }
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  cudaStreamDestroy(stream);
}

}  // namespace braid::testing
