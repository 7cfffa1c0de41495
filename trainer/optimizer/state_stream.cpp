#include "trainer/optimizer/state_stream.h"

#include <algorithm>

#include "kernels/core/memory.h"

namespace braid {

int64_t StateStream::bytes_of(int64_t elements, const std::vector<StateTensor>& state) const {
  int64_t bytes = 0;
  for (const StateTensor& s : state) bytes += round_up(s.of(0, elements).bytes(), kMemoryAlignBytes);
  return bytes;
}

void StateStream::fit(int64_t elements, const std::vector<StateTensor>& state) {
  window_bytes_ = std::max(window_bytes_, bytes_of(std::min(elements, slice_elements_), state));
}

void StateStream::plan(Planner& windows) {
  for (Window& window : windows_) windows.add("window", window.memory, {window_bytes_}, DType::kU8);
}

Context& StateStream::begin(Context& ctx) {
  if (!queues_) queues_.emplace(Queues{open_queue(ctx), open_queue(ctx), open_queue(ctx)});
  queues_->from_host.wait_for(queues_->to_host);  // what comes in now went out in the update before
  queues_->work.wait_for(ctx);
  return queues_->work;
}

std::vector<StateTensor> StateStream::in_window(Tensor memory, int64_t begin, int64_t end,
                                                const std::vector<StateTensor>& state) const {
  std::vector<StateTensor> slices;
  int64_t at = 0;
  for (const StateTensor& s : state) {
    const Tensor like = s.of(begin, end);
    slices.push_back({like, s.elements_each});
    if (!like.defined()) continue;
    slices.back().tensor = Tensor(memory.data<uint8_t>() + at, like.dtype(), like.shape(), memory.device());
    at += round_up(like.bytes(), kMemoryAlignBytes);
  }
  assert(at <= window_bytes_);
  return slices;
}

void StateStream::pass(int64_t elements, const std::vector<StateTensor>& state, const Work& work) {
  auto& [from_host, queue, to_host] = *queues_;
  for (int64_t begin = 0; begin < elements; begin += slice_elements_) {
    const int64_t end = std::min(elements, begin + slice_elements_);
    Window& window = windows_[next_++ % windows_.size()];
    const std::vector<StateTensor> slice = in_window(window.memory, begin, end, state);
    window.emptied.hold(from_host);
    for (size_t i = 0; i < state.size(); ++i)
      if (slice[i].tensor.defined()) enqueue_copy(from_host, slice[i].tensor, state[i].of(begin, end));
    window.filled.set(from_host);

    window.filled.hold(queue);
    work(queue, begin, end, slice);
    window.done.set(queue);

    window.done.hold(to_host);
    for (size_t i = 0; i < state.size(); ++i)
      if (slice[i].tensor.defined()) enqueue_copy(to_host, state[i].of(begin, end), slice[i].tensor);
    window.emptied.set(to_host);
  }
}

void StateStream::settle() {
  if (queues_) queues_->to_host.synchronize();
}

}  // namespace braid
