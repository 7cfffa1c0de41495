#include "kernels/core/profile.h"

#include "kernels/cuda/gpu.h"

namespace braid::cuda {
namespace {

class EventClock final : public Profile::Clock {
 public:
  explicit EventClock(Context& ctx) : ctx_(ctx) {}
  ~EventClock() override {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  int64_t mark() override {
    cudaEvent_t event;
    check_cuda(cudaEventCreate(&event), "cudaEventCreate");
    events_.push_back(event);
    check_cuda(cudaEventRecord(event, stream_of(ctx_)), "cudaEventRecord");
    return static_cast<int64_t>(events_.size()) - 1;
  }
  std::vector<double> milliseconds() override {
    ctx_.synchronize();
    std::vector<double> all;
    for (cudaEvent_t event : events_) {
      float ms = 0;
      check_cuda(cudaEventElapsedTime(&ms, events_[0], event), "cudaEventElapsedTime");
      all.push_back(ms);
    }
    return all;
  }

 private:
  Context& ctx_;
  std::vector<cudaEvent_t> events_;
};

}  // namespace

std::unique_ptr<Profile::Clock> make_event_clock(Context& ctx) { return std::make_unique<EventClock>(ctx); }

}  // namespace braid::cuda
