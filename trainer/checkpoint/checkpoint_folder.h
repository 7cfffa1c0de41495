#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace braid {

// Committed checkpoints of a folder, oldest first (by step). Temporary and foreign entries are ignored; a damaged
// checkpoint, also one without a manifest, is not, so that opening it says what is wrong.
struct CheckpointEntry {
  int64_t step;
  std::string path;
};
std::vector<CheckpointEntry> list_checkpoints(const std::string& folder);

// Those of the branch that the run is on, newest first: what LATEST names and the steps before it. Later steps belong
// to a branch that was left. Where LATEST names none that is there (a save that was killed before its commit), all of
// them.
std::vector<CheckpointEntry> branch_checkpoints(const std::string& folder);

// The folder of the run that a checkpoint lies in, as <run>/checkpoints/NAME; empty where it lies elsewhere.
std::string run_folder_of(const std::string& checkpoint);

// The run goes on after the checkpoint `path`: what is not before it on its branch gets another name, that nothing
// loads, and LATEST names it. Of what `damaged` lists, .corrupt-NAME, of what belongs to a branch that is left,
// .abandoned-NAME. Rank 0 only.   Returns the new names.   Errors: IoError.
std::vector<std::string> set_others_aside(const std::string& folder, const std::string& path,
                                          const std::vector<std::string>& damaged);

// Removes what a killed save or pruning left. Only while nobody else writes: under the lock of the run folder.
void clear_left_overs(const std::string& folder);

// Removes all but the newest `keep` of the folder (0 = keep all), the one that LATEST names and `verified`, which may
// be empty; and left-overs. Rank 0 only.
void prune_checkpoints(const std::string& folder, int64_t keep, const std::string& verified = "");

// What prune_checkpoints and set_others_aside left in a folder: temporary, damaged and abandoned entries.
std::vector<std::string> set_aside_in(const std::string& folder);

// Removes a checkpoint or what is left of one: under another name first, so that a kill leaves no half under its own.
// Errors: IoError.
void remove_checkpoint(const std::string& path);

// How entries are called.
std::string step_name(int64_t step);
std::string latest_name(const std::string& folder);  // what LATEST says; "" if it cannot be trusted

// step-N -> .tmp-step-N, .trash-step-N
std::string temporary_of(const std::string& path);
std::string trash_of(const std::string& path);
std::string free_corrupt_name(const std::string& path);  // .corrupt-step-N, or .corrupt-step-N.2 …
void write_latest(const std::string& folder, const std::string& name);

}  // namespace braid
