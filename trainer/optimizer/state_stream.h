#pragma once

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/queues.h"

namespace braid {

// State of a shard: a tensor whose rows hold a number, or a few, for so many elements each.
struct StateTensor {
  Tensor tensor;
  int64_t elements_each = 1;
  Tensor of(int64_t begin, int64_t end) const {  // elements
    if (!tensor.defined()) return tensor;
    return tensor.rows(begin / elements_each, (end + elements_each - 1) / elements_each);
  }
};

// Where the state of shards is planned: of the first groups on the device, of those from `first_away` on in host
// memory.
struct StatePlan {
  Planner &kept, &away;
  size_t first_away;
  StatePlan(Planner& all) : kept(all), away(all), first_away(0) {}
  StatePlan(Planner& kept, Planner& away, size_t first_away) : kept(kept), away(away), first_away(first_away) {}
  Planner& of(size_t group) const { return group < first_away ? kept : away; }
};

// Carries what an update needs of every element, and changes, from host memory through windows of device memory and
// back: while a slice is worked on, the next comes in and the one before goes out. All of it runs beside the context
// that it is called with.
class StateStream {
 public:
  static constexpr int64_t kSliceElements = int64_t{8} << 20;  // 32 to 80 MiB, a millisecond of the bus
  explicit StateStream(int64_t slice_elements = kSliceElements) : slice_elements_(slice_elements) {}

  // Windows for shards of so many elements with such state.
  void fit(int64_t elements, const std::vector<StateTensor>& state);
  void plan(Planner& windows);
  bool has_windows() const { return windows_.front().memory.raw() != nullptr; }

  // The queue of an update's work, which comes behind everything that ctx has been given so far. Every shard that has
  // windows passes once.
  Context& begin(Context& ctx);
  // Calls `work` for all slices of a shard, in order, with their state on the device, to enqueue on that queue.
  using Work = std::function<void(Context& queue, int64_t begin, int64_t end, const std::vector<StateTensor>& state)>;
  void pass(int64_t elements, const std::vector<StateTensor>& state, const Work& work);

  // Returns when all state is back in host memory.
  void settle();

 private:
  struct Window {
    Tensor memory;  // (bytes) U8
    Milestone filled, done, emptied;
  };
  struct Queues {
    Context from_host, work, to_host;
  };
  int64_t bytes_of(int64_t elements, const std::vector<StateTensor>& state) const;
  // As much of a window as state of these elements takes, in their shapes.
  std::vector<StateTensor> in_window(Tensor memory, int64_t begin, int64_t end,
                                     const std::vector<StateTensor>& state) const;

  int64_t slice_elements_, window_bytes_ = 0;
  std::array<Window, 3> windows_;  // one comes in, one is worked on, one goes out
  size_t next_ = 0;
  std::optional<Queues> queues_;
};

}  // namespace braid
