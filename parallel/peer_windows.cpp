#include "parallel/peer_windows.h"

#include <cuda.h>

#include <chrono>
#include <functional>
#include <limits>
#include <list>
#include <string>
#include <vector>

#include "kernels/core/memory.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/peer_store.h"

namespace braid {
namespace {

using cuda::check_cuda;
using cuda::stream_of;

constexpr int kMostRanks = cuda::kMostPeers;
// In the flags, in front of the halves: word s is the number of the last call whose rows from rank s are all here;
// behind those words one that holds the number of this rank's own call.
constexpr int64_t kWordBytes = sizeof(uint64_t), kOwnCall = kMostRanks;
constexpr int64_t kMostStoredBytes = int64_t{4} << 20;  // to one rank; more goes by copy engine
constexpr auto kMostWait = std::chrono::minutes(10);

// Values written, and waited for, by a stream itself: no kernel, and no thread of the host. Null where the driver or
// the GPU has none.
struct StreamValues {
  decltype(&cuStreamWriteValue64) write = nullptr;
  decltype(&cuStreamWaitValue64) wait = nullptr;
};

template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const bool ok = cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found) == cudaSuccess;
  return reinterpret_cast<Function>(ok && found == cudaDriverEntryPointSuccess ? function : nullptr);
}

StreamValues stream_values() {
  static const StreamValues values = {driver_function<decltype(StreamValues::write)>("cuStreamWriteValue64"),
                                      driver_function<decltype(StreamValues::wait)>("cuStreamWaitValue64")};
  return values;
}

void check_driver(CUresult result, const char* call) {
  check<CommunicationError>(result == CUDA_SUCCESS, call, ": error ", static_cast<int>(result), " of the CUDA driver");
}

class CudaPeerWindows final : public PeerWindows {
 public:
  CudaPeerWindows(Context& ctx, int rank, int size, std::shared_ptr<std::byte> own, std::vector<std::byte*> windows,
                  int64_t bytes)
      : gpu_(ctx.gpu()), rank_(rank), size_(size), bytes_(bytes), own_(std::move(own)), windows_(std::move(windows)) {
    for (cudaStream_t* stream : {&stream_, &watch_})
      check_cuda(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate");
    check_cuda(cudaEventCreateWithFlags(&reached_, cudaEventDisableTiming), "cudaEventCreate");
    gpu_.health_checks->push_back([this] { look_for_late_ranks(); });
    health_check_ = std::prev(gpu_.health_checks->end());
  }
  ~CudaPeerWindows() override {
    gpu_.health_checks->erase(health_check_);
    stop_waiting();
    cudaEventDestroy(reached_);
    cudaStreamDestroy(watch_);
    cudaStreamDestroy(stream_);
    for (int r = 0; r < size_; ++r)
      if (r != rank_) cudaIpcCloseMemHandle(windows_[r]);
  }

  int64_t bytes() const override { return bytes_; }

  Tensor all_gather(Context& ctx, const Tensor& rows, int64_t places) override {
    const int64_t row_bytes = rows.dim(1) * size_of(rows.dtype());
    return exchange(ctx, {size_ * places, rows.dim(1)}, rows.dtype(), rows.bytes(), places * row_bytes,
                    [&](int) { return static_cast<const std::byte*>(rows.raw()); });
  }

  Tensor all_to_all(Context& ctx, const Tensor& rows) override {
    const int64_t part_bytes = rows.bytes() / size_;
    return exchange(ctx, rows.shape(), rows.dtype(), part_bytes, part_bytes,
                    [&](int r) { return static_cast<const std::byte*>(rows.raw()) + r * part_bytes; });
  }

  void wait(Context& ctx) override {
    check_cuda(cudaEventRecord(reached_, stream_), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream_of(ctx), reached_, 0), "cudaStreamWaitEvent");
  }

 private:
  // Writes `sent_bytes` from from(r) into rank r's window, at the place of this rank's part, and waits for everybody's.
  //
  // Half call % 2 may be written: this stream has waited for everybody's call - 1, which began after the readers of
  // call - 2, for ctx was given them before.
  template <class From>
  Tensor exchange(Context& ctx, Shape shape, DType dtype, int64_t sent_bytes, int64_t part_bytes, From&& from) {
    check<ShapeError>(part_bytes * size_ <= bytes_, "rows: a window of ", bytes_, " bytes has no room for ",
                      shape.to_string(), " of ", name_of(dtype));
    check_cuda(cudaEventRecord(reached_, stream_of(ctx)), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(stream_, reached_, 0), "cudaStreamWaitEvent");
    ++call_;
    const int64_t half = kFlagBytes + static_cast<int64_t>(call_ % 2) * bytes_;
    const int64_t place = half + rank_ * part_bytes;
    if (!store(from, place, sent_bytes)) send(from, place, sent_bytes);
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      check_driver(stream_values().wait(stream_, reinterpret_cast<CUdeviceptr>(own_.get() + r * kWordBytes), call_,
                                        CU_STREAM_WAIT_VALUE_GEQ),
                   "cuStreamWaitValue64");
    }
    return Tensor(own_.get() + half, dtype, shape, Device::kCuda);
  }

  // By a kernel, where a message is small. False if it is not, or its addresses do not allow it.
  template <class From>
  bool store(From&& from, int64_t to, int64_t count) {
    if (count > kMostStoredBytes || count % 16 != 0 || to % 16 != 0) return false;
    cuda::PeerStores stores;
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      if (reinterpret_cast<uintptr_t>(from(r)) % 16 != 0) return false;
      stores.store[stores.count++] = {from(r), windows_[r] + to,
                                      reinterpret_cast<uint64_t*>(windows_[r] + rank_ * kWordBytes)};
    }
    cuda::store_to_peers(stream_, stores, count, call_);
    return true;
  }

  // By the copy engines.
  template <class From>
  void send(From&& from, int64_t to, int64_t count) {
    auto write = [&](std::byte* place, const std::byte* data, int64_t bytes) {
      check_cuda(cudaMemcpyAsync(place, data, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
                 "cudaMemcpyAsync to a peer");
    };
    check_driver(stream_values().write(stream_, reinterpret_cast<CUdeviceptr>(own_.get() + kOwnCall * kWordBytes),
                                       call_, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue64");
    // To the next rank first, so that no two write to the same one at a time. A number follows the rows it stands for.
    for (int i = 1; i < size_; ++i) {
      const int r = (rank_ + i) % size_;
      if (count > 0) write(windows_[r] + to, from(r), count);
      write(windows_[r] + rank_ * kWordBytes, own_.get() + kOwnCall * kWordBytes, kWordBytes);
    }
  }

  // After an error elsewhere a rank may never come, and memory of a GPU is not released before its streams are through:
  // as if all had come. Where the stream waits for something else, not for long.
  void stop_waiting() {
    const std::vector<int64_t> all_here(static_cast<size_t>(size_), std::numeric_limits<int64_t>::max());
    const auto begin = std::chrono::steady_clock::now();
    while (cudaStreamQuery(stream_) == cudaErrorNotReady &&
           std::chrono::steady_clock::now() - begin < std::chrono::seconds(5)) {
      cudaMemcpyAsync(own_.get(), all_here.data(), all_here.size() * kWordBytes, cudaMemcpyHostToDevice, watch_);
      cudaStreamSynchronize(watch_);
    }
  }

  // Called while the host waits for the GPU: names who has not come to a call for too long.
  void look_for_late_ranks() {
    const auto now = std::chrono::steady_clock::now();
    if (call_ != watched_call_) {
      watched_call_ = call_;
      watched_since_ = now;
    }
    if (now - watched_since_ < kMostWait) return;
    std::vector<uint64_t> calls(static_cast<size_t>(size_));
    check_cuda(cudaMemcpyAsync(calls.data(), own_.get(), calls.size() * kWordBytes, cudaMemcpyDeviceToHost, watch_),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(watch_), "cudaStreamSynchronize");
    for (int r = 0; r < size_; ++r)
      check<CommunicationError>(r == rank_ || calls[r] >= watched_call_, "expert exchange: rank ", r,
                                " of the expert group has not come for ten minutes");
    watched_since_ = now;  // all are here: it is something else that takes long
  }

  cuda::Gpu& gpu_;
  int rank_, size_;
  int64_t bytes_;
  std::shared_ptr<std::byte> own_;
  std::vector<std::byte*> windows_;  // of every rank, as addresses here
  uint64_t call_ = 0, watched_call_ = 0;
  std::chrono::steady_clock::time_point watched_since_;
  cudaStream_t stream_ = nullptr, watch_ = nullptr;
  cudaEvent_t reached_ = nullptr;
  cuda::Gpu::HealthChecks::iterator health_check_;
};

}  // namespace

std::unique_ptr<PeerWindows> open_peer_windows(Context& ctx, Communicator& group, int64_t bytes) {
  const int size = group.size(), rank = group.rank();
  bytes = round_up(bytes, kMemoryAlignBytes);
  auto own = allocate_memory(Device::kCuda, PeerWindows::memory_bytes(bytes));
  check<OutOfMemoryError>(own != nullptr, "no memory left for ", 2 * bytes, " bytes of rows from other ranks");
  zero_memory(Device::kCuda, own.get(), PeerWindows::kFlagBytes);

  struct Offer {
    cudaIpcMemHandle_t handle;  // means something on its host
    int64_t valid;
  };
  std::vector<Offer> offers(static_cast<size_t>(size));
  Offer& mine = offers[rank];
  mine.valid = group.gpus_of_one_host() && size <= kMostRanks && stream_values().write && stream_values().wait &&
               cudaIpcGetMemHandle(&mine.handle, own.get()) == cudaSuccess;
  Context cpu = Context::cpu();
  Tensor all(offers.data(), DType::kU8, {size, int64_t{sizeof(Offer)}});
  group.all_gather(cpu, all, all.rows(rank, rank + 1));

  std::vector<std::byte*> windows(static_cast<size_t>(size));
  int64_t failed = 0;
  for (int r = 0; r < size; ++r) {
    void* window = nullptr;
    if (r == rank) window = own.get();
    else if (!mine.valid || !offers[r].valid ||
             cudaIpcOpenMemHandle(&window, offers[r].handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess)
      failed = 1;
    windows[r] = static_cast<std::byte*>(window);
  }
  cudaGetLastError();  // it is handled here
  group.all_reduce(cpu, Tensor::of(&failed, {1}), ReduceOp::kMax);
  if (!failed) return std::make_unique<CudaPeerWindows>(ctx, rank, size, std::move(own), std::move(windows), bytes);
  for (int r = 0; r < size; ++r)
    if (r != rank && windows[r]) cudaIpcCloseMemHandle(windows[r]);
  group.barrier(cpu);  // nobody frees what another has open
  return nullptr;
}

}  // namespace braid
