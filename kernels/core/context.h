#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace braid {

class Profile;
struct GpuModel;  // kernels/core/device_info.h

namespace cuda {
struct Gpu;  // kernels/cuda/gpu.h: the device's stream, library handles and properties
}

// Where an operator runs: the device and its scratch memory. One per thread of control; operators enqueue on it.
class Context {
 public:
  static Context cpu() { return Context(); }
  // The GPU with this index, with a stream of its own; it becomes the calling thread's current device.
  // Errors: EnvironmentError if there is no such device, or if it is too old.
  static Context gpu(int device_index);

  static int num_gpus();            // that this process sees; 0 in a build without CUDA
  static std::string why_no_gpu();  // what the driver says where there is none

  // A context of the same device that finds out how much scratch a computation takes, by running it: operators and
  // communicators take what they need from it, see scratch_peak_bytes(), and do nothing else. No tensor needs memory.
  Context counter() const;
  // The same on a GPU that need not be there.   Errors: EnvironmentError in a build without CUDA.
  static Context counter_on(const GpuModel& gpu);
  bool counts_only() const { return counts_only_; }

  Device device() const { return gpu_ ? Device::kCuda : Device::kCpu; }
  bool on_cuda() const { return device() == Device::kCuda; }
  cuda::Gpu& gpu() const { return *gpu_; }  // on_cuda() only

  // A second queue of the same device with scratch memory of its own, for what may run beside this one, such as the
  // transfers between ranks: on a GPU another stream, on the CPU the context itself. Always the same one.
  Context& side();
  // One like this, with scratch memory of its own, for a computation that runs beside what this one is given. Always
  // the same one; what it takes is counted here too.
  Context& second();
  // What is enqueued here from now on runs after everything that `other` (this context's side or second, or the other
  // way round) was given so far.
  void wait_for(Context& other);

  // Waits until everything that was enqueued has run.   Errors: EnvironmentError if a kernel failed.
  void synchronize() const;

  // Where operators report their times; null for nowhere. See kernels/core/profile.h.
  Profile* profile() const { return profile_; }
  void attach(Profile* profile) { profile_ = profile; }

  // Takes this much scratch in one block, so that operators that need no more of it take no memory of their own. Only
  // while no scratch is in use.   Errors: OutOfMemoryError.
  void reserve_scratch(int64_t bytes);
  // Most scratch bytes that were in use at one time: here, and with those of the second.
  int64_t own_scratch_peak_bytes() const { return peak_bytes_; }
  int64_t scratch_peak_bytes() const { return peak_bytes_ + (second_ ? second_->peak_bytes_ : 0); }
  // What was taken for it.
  int64_t scratch_reserved_bytes() const;

 private:
  friend class Scratch;
  struct Block {
    std::shared_ptr<std::byte> memory;
    int64_t bytes = 0;
    int64_t used_bytes = 0;
  };
  void add_block(int64_t bytes);
  std::byte* push(int64_t bytes);

  std::shared_ptr<cuda::Gpu> gpu_;
  std::shared_ptr<Context> side_, second_;
  Profile* profile_ = nullptr;
  bool counts_only_ = false;
  std::vector<Block> blocks_;  // a stack; blocks are kept, so a step after the first allocates nothing
  size_t top_ = 0;             // the block in use
  int64_t in_use_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

// Scratch of one scope: what it hands out is uninitialised and is released when the scope ends.
//   Scratch scratch(ctx);
//   Tensor logits = scratch.tensor({N, E}, x.dtype());
class Scratch {
 public:
  explicit Scratch(Context& ctx);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  Tensor tensor(Shape shape, DType dtype);
  bool counts_only() const { return ctx_.counts_only(); }  // then what it hands out has no memory
  template <class T>
  T* array(int64_t count) {
    return tensor({count}, dtype_of<T>()).template data<T>();
  }

 private:
  Context& ctx_;
  size_t top_;
  int64_t used_bytes_;
  int64_t in_use_bytes_;
};

}  // namespace braid
