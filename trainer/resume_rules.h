#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/config/config.h"

namespace braid {

// Whether a key only says where and how fast a run computes, how far it goes, what it keeps and what it says.
bool leaves_steps_alone(const std::string& key);

// Throws CheckpointError naming the first keys that differ if a run with `config` on num_ranks may not go on from a
// checkpoint whose run had `stored`: every key that changes what is computed must be the same, those in `overrides`
// excepted. Keys of layout, paths, saving, evaluation and logging, and the number of steps, are free;
// train.micro_batch_size and the ranks only where balance losses do not count by them. Learning rate and schedule,
// batch size and balance settings may be in `overrides`; others there are a ConfigError.
struct ResumeRules {
  int64_t stored_ranks = 1, num_ranks = 1;
  std::vector<std::string> overrides;
};
void check_resume_config(const RunConfig& stored, const RunConfig& config, const std::string& checkpoint_path,
                         const ResumeRules& rules = {});

// What becomes of the learning rate where run.steps is another than in the checkpoint after step `done`: a sentence
// for the user, empty if no step is left.
std::string note_of_schedule(const RunConfig& stored, const RunConfig& config, int64_t done);

}  // namespace braid
