#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/copy.h"
#include "kernels/core/memory.h"
#include "kernels/cuda/gpu.h"
#include "kernels/random.h"

// Times operators on the GPU. A program is a main that lists them:
//
//   Bench bench;
//   const Bench::Tensors x = bench.random({N, C}, DType::kBF16);
//   Tensor y = bench.empty({N, C}, DType::kBF16);
//   bench.measure("operator_forward", 4.0 * N * C, 0, [&](int turn) { operator_forward(bench.ctx(), y, x[turn]); });
namespace braid::bench {

class Bench {
 public:
  // Tensors alike, enough of them that what one turn reads has left the cache before it is read again.
  class Tensors {
   public:
    const Tensor& operator[](int turn) const { return copies_[turn % copies_.size()]; }
    Tensor& operator[](int turn) { return copies_[turn % copies_.size()]; }

   private:
    friend class Bench;
    std::vector<Tensor> copies_;
  };

  Context& ctx() { return ctx_; }

  // GPU memory that lives as long as the bench.
  Tensor empty(Shape shape, DType dtype) {
    Tensor t(nullptr, dtype, shape, Device::kCuda);
    memory_.push_back(allocate_memory(Device::kCuda, std::max<int64_t>(1, t.bytes())));
    check<OutOfMemoryError>(memory_.back() != nullptr, "no GPU memory for ", t.bytes(), " bytes");
    return Tensor(memory_.back().get(), dtype, shape, Device::kCuda);
  }
  // Normal numbers: zeros would flatter every operator that multiplies.
  Tensors random(Shape shape, DType dtype, double stddev = 1, double mean = 0) {
    return copies(shape, dtype, [&](Tensor& t) { fill_normal(ctx_, t, mean, stddev, ++seed_, 0, 0); });
  }
  Tensors uniform(Shape shape, DType dtype, double low, double high) {
    return copies(shape, dtype, [&](Tensor& t) { fill_uniform(ctx_, t, low, high, ++seed_, 0, 0); });
  }
  template <class T>
  Tensor upload(std::vector<T> values, Shape shape) {
    Tensor t = empty(shape, dtype_of<T>());
    copy(ctx_, t, Tensor::of(values.data(), shape));
    return t;
  }

  // Prints the median time of `body`, which may launch several kernels, replayed as a CUDA graph as in a step, and what
  // follows from it for the least bytes and FLOP that the operator needs (0: not printed).
  void measure(const std::string& name, double bytes, double flop, const std::function<void(int turn)>& body) {
    for (int turn = 0; turn < 2; ++turn) body(turn);  // takes scratch, chooses algorithms
    ctx_.synchronize();
    std::vector<float> times = times_of(body);
    std::nth_element(times.begin(), times.begin() + kTurns / 2, times.end());
    const double ms = times[kTurns / 2];
    std::printf("%-44s %9.4f ms", name.c_str(), ms);
    if (bytes > 0) std::printf(" %7.2f TB/s", bytes / ms * 1e-9);
    if (flop > 0) std::printf(" %7.1f TFLOP/s", flop / ms * 1e-9);
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  static constexpr int kTurns = 25;
  static constexpr int64_t kPastCacheBytes = int64_t{160} << 20;

  template <class Fill>
  Tensors copies(Shape shape, DType dtype, Fill&& fill) {
    Tensors result;
    int64_t bytes = 0;
    do {
      result.copies_.push_back(empty(shape, dtype));
      fill(result.copies_.back());
      bytes += result.copies_.back().bytes();
    } while (bytes < kPastCacheBytes && result.copies_.size() < kTurns);
    return result;
  }

  // Of every turn, between events around it. All turns are enqueued while the GPU fills a large block of memory, so
  // that it never waits for the host.
  std::vector<float> times_of(const std::function<void(int turn)>& body) {
    using cuda::check_cuda;
    cudaStream_t stream = cuda::stream_of(ctx_);
    std::vector<cudaGraphExec_t> graphs(kTurns);
    std::vector<cudaEvent_t> events(kTurns + 1);
    for (cudaEvent_t& event : events) check_cuda(cudaEventCreate(&event), "cudaEventCreate");
    for (int turn = 0; turn < kTurns; ++turn) {
      cudaGraph_t graph;
      check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
      body(turn);
      check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
      check_cuda(cudaGraphInstantiate(&graphs[turn], graph, 0), "cudaGraphInstantiate");
      check_cuda(cudaGraphUpload(graphs[turn], stream), "cudaGraphUpload");
      check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
    }
    fill_zero(ctx_, head_start_);
    check_cuda(cudaEventRecord(events[0], stream), "cudaEventRecord");
    for (int turn = 0; turn < kTurns; ++turn) {
      check_cuda(cudaGraphLaunch(graphs[turn], stream), "cudaGraphLaunch");
      check_cuda(cudaEventRecord(events[turn + 1], stream), "cudaEventRecord");
    }
    ctx_.synchronize();
    std::vector<float> times(kTurns);
    for (int turn = 0; turn < kTurns; ++turn)
      check_cuda(cudaEventElapsedTime(&times[turn], events[turn], events[turn + 1]), "cudaEventElapsedTime");
    for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
    for (cudaEvent_t event : events) cudaEventDestroy(event);
    return times;
  }

  Context ctx_ = Context::gpu(0);
  std::vector<std::shared_ptr<std::byte>> memory_;
  Tensor head_start_ = empty({int64_t{2} << 30}, DType::kU8);
  uint64_t seed_ = 0;
};

}  // namespace braid::bench
