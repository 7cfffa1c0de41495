#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace braid {

// What a rank is doing, in words: "evaluation".
enum class Phase : int32_t { kStart, kLoad, kData, kStep, kEvaluation, kSave, kEnded };
const char* name_of(Phase phase);

enum class Collective : int32_t { kAllReduce, kReduceScatter, kAllGather, kAllToAllRows, kBroadcast, kBarrier, kSplit };
const char* name_of(Collective collective);

// A text and since when it is true, where other processes can read it. Written by one thread.
class SharedText {
 public:
  // Of now_ms(), 0: there is none. Cut in front if it is too long.
  void store(const std::string& text, int64_t since_ms);
  struct Value {
    std::string text;  // empty: there is none
    int64_t since_ms = 0;
  };
  Value load() const;

 private:
  static constexpr size_t kBytes = 512;
  std::atomic<int64_t> since_ms_{0};  // 0 while the text is written
  std::array<std::atomic<char>, kBytes> text_{};
};

// The state of one rank, where other processes of its host can read it: it is shared memory, so what a stopped or dead
// rank was doing is there to see. Written by one thread of the rank, read by any.
struct RankProgress {
  struct Call {  // one collective
    std::atomic<int32_t> collective{0}, group_size{0};
    std::atomic<int64_t> number{0}, bytes{0}, step{0}, begin_ms{0}, end_ms{0};  // end_ms 0: not over
    // Of the communicator, the same for all its ranks, and the call's number among its own: groups may call more or
    // less often than others, members of one may not.
    std::atomic<int64_t> group{0}, number_in_group{0};
  };
  static constexpr int64_t kCalls = 256;
  std::atomic<int32_t> pid{0}, rank{0};
  std::atomic<int32_t> phase{0};
  std::atomic<int64_t> step{0};        // the one that is computed, or was computed last
  std::atomic<int64_t> changes{0};     // grows with every phase, step and collective
  std::atomic<int64_t> changed_ms{0};  // of now_ms, at the last change
  std::atomic<int64_t> longest_step_ms{0};
  std::atomic<int64_t> calls_begun{
      0};  // collectives, over all groups; the same on every rank at the same point of the program
  std::atomic<int32_t> in_collective{0};
  // Spent in collectives, most of it waiting for others; on a GPU: enqueuing them.
  std::atomic<int64_t> collective_ns{0};
  SharedText slow_read;            // a file that its disk does not give, for a second or longer
  std::array<Call, kCalls> calls;  // collective number n is in n % kCalls, the first is number 1

  Phase current_phase() const { return static_cast<Phase>(phase.load(std::memory_order_relaxed)); }
  const Call& last_call() const {
    return calls[static_cast<size_t>(calls_begun.load(std::memory_order_relaxed) % kCalls)];
  }
};
static_assert(std::atomic<int64_t>::is_always_lock_free);

int64_t now_ms();  // monotonic, the same clock for all processes of a host

// Of this process.
RankProgress& own_progress();
void enter_phase(Phase phase);
void enter_phase(Phase phase, int64_t step);

// The states of the ranks of this host, and one word by which they choose who speaks for them. The memory stays mapped
// when a board ends: a thread that outlives it may just be looking at its own_progress().
class ProgressBoard {
 public:
  // Called by every rank; from then on own_progress() is seen by the others of the host.   Errors: IoError.
  ProgressBoard(Context& ctx, Communicator& world);
  ~ProgressBoard();  // own_progress() is private again
  ProgressBoard(const ProgressBoard&) = delete;
  ProgressBoard& operator=(const ProgressBoard&) = delete;

  int size() const { return size_; }
  const RankProgress& rank(int index) const;  // in rank order
  bool claim_to_speak();                      // true for the first that asks
  bool someone_speaks() const;

 private:
  struct Shared;
  Shared* shared_ = nullptr;
  int size_ = 1;
};

// The same communicator, whose calls, and those of the groups split from it, are seen in own_progress().
std::unique_ptr<Communicator> with_progress(std::unique_ptr<Communicator> communicator);

}  // namespace braid
