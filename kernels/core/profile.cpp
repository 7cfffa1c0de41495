#include "kernels/core/profile.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "kernels/build_config.h"

namespace braid {

namespace cuda {
std::unique_ptr<Profile::Clock> make_event_clock(Context& ctx);
}

namespace {

class HostClock final : public Profile::Clock {
 public:
  int64_t mark() override {
    marks_.push_back(std::chrono::steady_clock::now());
    return static_cast<int64_t>(marks_.size()) - 1;
  }
  std::vector<double> milliseconds() override {
    std::vector<double> ms;
    for (const auto& mark : marks_) ms.push_back(std::chrono::duration<double, std::milli>(mark - marks_[0]).count());
    return ms;
  }

 private:
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

std::unique_ptr<Profile::Clock> make_clock(Context& ctx) {
  if constexpr (kWithCuda) {
    if (ctx.on_cuda()) return cuda::make_event_clock(ctx);
  }
  return std::make_unique<HostClock>();
}

}  // namespace

Profile::Profile(Context& ctx) : ctx_(ctx), clock_(make_clock(ctx)) { ctx.attach(this); }
Profile::~Profile() { ctx_.attach(nullptr); }

std::vector<OperatorTime> Profile::times() {
  const std::vector<double> ms = clock_->milliseconds();
  std::map<std::string, OperatorTime> by_name;
  for (const Interval& interval : intervals_) {
    OperatorTime& time = by_name[interval.name];
    time.name = interval.name;
    time.calls += 1;
    time.ms += ms[interval.end] - ms[interval.begin];
  }
  std::vector<OperatorTime> times;
  for (const auto& [name, time] : by_name) times.push_back(time);
  std::stable_sort(times.begin(), times.end(), [](const auto& a, const auto& b) { return a.ms > b.ms; });
  return times;
}

void OperatorScope::begin(const char* name) {
  if (profile_->depth_++ == 0) profile_->intervals_.push_back({name, profile_->clock_->mark(), 0});
}
void OperatorScope::end() {
  if (--profile_->depth_ == 0) profile_->intervals_.back().end = profile_->clock_->mark();
}

}  // namespace braid
