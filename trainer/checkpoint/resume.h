#pragma once

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

// What a run goes on from.
struct ResumeChoice {
  std::string folder;      // of its checkpoints
  std::string checkpoint;  // the one; empty: the newest of the branch that LATEST names
  bool strict = false;     // a damaged one is an error, not passed over for the one before it
  // The newest that is not behind it, the oldest if all are.
  int64_t up_to_step = std::numeric_limits<int64_t>::max();
};

struct Resumed {
  std::string path;
  CheckpointInfo info;
  std::vector<std::string> damaged;    // in words: what was passed over, and why
  std::vector<std::string> set_aside;  // in words: what got another name
};

// Opens a checkpoint, asks whether the run may go on from it (`accept`, which throws if not) and loads it. One that is
// damaged is passed over, in words, for the newest before it. Once one is loaded, those that are not before it on
// its branch are set aside (see set_others_aside). Called by every rank; rank 0 chooses, all go on from the same.
// Errors, on every rank: CheckpointError if there is none, none that is whole, or the one asked for is damaged;
// ConfigError if that is a run folder; IoError, also if one may be whole, but cannot be opened by this process; what
// `accept` throws.
Resumed resume_from(Context& ctx, Communicator& world, const ResumeChoice& choice,
                    const std::function<void(const CheckpointReader&)>& accept,
                    const std::function<void(const CheckpointReader&)>& load);

}  // namespace braid
