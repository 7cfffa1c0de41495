#pragma once

#include <coroutine>
#include <exception>
#include <memory>
#include <span>
#include <utility>

#include "kernels/core/context.h"

namespace braid {

// A computation in steps: a function that returns one pauses at every co_yield Pause(), so that steps of others may be
// enqueued between its own, and co_yield of another computation in steps has that done, with its pauses, before it goes
// on. It begins with the first next(); whatever was given to it by reference must stay until it has ended.
class Steps {
 public:
  struct promise_type {
    std::exception_ptr error;
    std::unique_ptr<Steps> part;  // under way
    Steps get_return_object() { return Steps(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    struct Pause {};
    std::suspend_always yield_value(Pause) noexcept { return {}; }
    std::suspend_always yield_value(Steps steps) {
      part = std::make_unique<Steps>(std::move(steps));
      return {};
    }
    void return_void() {}
    void unhandled_exception() { error = std::current_exception(); }
  };
  using Pause = promise_type::Pause;

  explicit Steps(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  Steps(Steps&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Steps& operator=(Steps&&) = delete;
  ~Steps() {
    if (handle_) handle_.destroy();
  }

  // Enqueues the next step. False behind the last.
  bool next() {
    promise_type& promise = handle_.promise();
    do {
      if (promise.part) {
        if (promise.part->next()) return true;
        promise.part.reset();
      }
      handle_.resume();
      if (promise.error) std::rethrow_exception(promise.error);
    } while (promise.part);
    return !handle_.done();
  }
  void run() {
    while (next()) {}
  }

 private:
  std::coroutine_handle<promise_type> handle_;
};

// A computation and where it is enqueued.
struct StepsOn {
  Context* ctx;
  Steps steps;
};

// Several side by side, step by step, each behind the same step of the one before it. All have as many steps.
inline void run_side_by_side(std::span<StepsOn> computations) {
  for (bool more = true; more;) {
    for (size_t i = 0; i < computations.size(); ++i) {
      if (i > 0) computations[i].ctx->wait_for(*computations[i - 1].ctx);
      more = computations[i].steps.next();
    }
  }
}

}  // namespace braid
