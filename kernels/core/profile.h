#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"

namespace braid {

struct OperatorTime {
  std::string name;
  int64_t calls = 0;
  double ms = 0;
};

// Time of every operator that runs on a context while the profile is attached to it: on a GPU between events on the
// stream, which costs the host a little and the device next to nothing. Operators that call others count whole.
class Profile {
 public:
  explicit Profile(Context& ctx);  // attaches
  ~Profile();                      // detaches
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // Since it was attached, longest first. Waits for the device.
  std::vector<OperatorTime> times();

  // What takes the times; one for each kind of device.
  struct Clock {
    virtual ~Clock() = default;
    virtual int64_t mark() = 0;                      // a point in time, numbered from 0
    virtual std::vector<double> milliseconds() = 0;  // of every mark, from the first
  };

 private:
  friend class OperatorScope;
  struct Interval {
    const char* name;
    int64_t begin, end;
  };
  Context& ctx_;
  std::unique_ptr<Clock> clock_;
  std::vector<Interval> intervals_;
  int depth_ = 0;
};

// First line of an operator:  const OperatorScope scope(ctx, "rms_norm_forward");
class OperatorScope {
 public:
  OperatorScope(Context& ctx, const char* name) : profile_(ctx.profile()) {
    if (profile_) [[unlikely]]
      begin(name);
  }
  ~OperatorScope() {
    if (profile_) [[unlikely]]
      end();
  }
  OperatorScope(const OperatorScope&) = delete;
  OperatorScope& operator=(const OperatorScope&) = delete;

 private:
  void begin(const char* name);
  void end();
  Profile* profile_;
};

}  // namespace braid
