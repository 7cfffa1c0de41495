#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid {

// What a device does beside a context: copies from and to host memory, and work on what they bring.

// Another queue of the same device, for copies and for operators without products; on the CPU a context like this one.
Context open_queue(const Context& ctx);

// A place in what a context was given, which others can wait for. One that was never set is reached.
class Milestone {
 public:
  void set(Context& ctx);         // where what ctx was given ends now
  void hold(Context& ctx) const;  // until it is reached: what ctx is given from now on

 private:
  std::shared_ptr<void> event_;
};

// Host memory that a GPU copies from and to by itself, beside what the host does, for as long as this lives.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  // Of the calling thread's current GPU.   Errors: OutOfMemoryError if the host has not enough that can be pinned;
  // EnvironmentError in a build without CUDA.
  PinnedMemory(void* begin, int64_t bytes);

 private:
  std::shared_ptr<void> pinned_;
};

// to = from, the same dtype and number of elements, each on the CPU or on ctx's GPU, enqueued whatever the direction:
// host memory is pinned and left alone until ctx has come to it.   Errors: ShapeError, DTypeError.
void enqueue_copy(Context& ctx, Tensor to, const Tensor& from);

}  // namespace braid
