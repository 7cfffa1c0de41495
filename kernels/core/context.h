#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/core/tensor.h"

namespace braid {

// Where an operator runs: the device and its scratch memory. One per thread of control; operators enqueue on it.
class Context {
 public:
  static Context cpu() { return Context(); }

  Device device() const { return Device::kCpu; }
  bool on_cuda() const { return device() == Device::kCuda; }

  // Most scratch bytes that were in use at one time.
  int64_t scratch_peak_bytes() const { return peak_bytes_; }

 private:
  friend class Scratch;
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    int64_t bytes = 0;
    int64_t used_bytes = 0;
  };
  std::byte* push(int64_t bytes);

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
