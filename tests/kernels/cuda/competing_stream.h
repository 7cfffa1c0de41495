#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace braid::testing {

// hash (1) I64 on the GPU: of every byte of `tensors` (on the GPU) and of where it stands. Enqueued on ctx.
void hash_on_gpu(Context& ctx, Tensor hash, const std::vector<Tensor>& tensors);

// Fills the scratch memory that the next operators will find with this byte, as far as its first `bytes`.
void spoil_scratch(Context& ctx, int64_t bytes, int byte);

// While it lives, a second stream of another host thread keeps the GPU busy with kernels, fills and copies of changing
// length and width, so that the blocks of whatever else runs start in another order and at other times every time.
// Stops by itself after kLongestSeconds.
class CompetingStream {
 public:
  static constexpr int kLongestSeconds = 300;
  explicit CompetingStream(Context& ctx);
  ~CompetingStream();
  CompetingStream(const CompetingStream&) = delete;
  CompetingStream& operator=(const CompetingStream&) = delete;

  int64_t turns() const { return turns_; }  // pieces of work that are done

 private:
  void work(int device_index);

  std::atomic<bool> stop_ = false;
  std::atomic<int64_t> turns_ = 0;
  std::thread thread_;
};

}  // namespace braid::testing
