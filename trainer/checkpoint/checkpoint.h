#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "parallel/communicator.h"
#include "model/weight_source.h"

namespace braid {

// A piece of a logical tensor: elements [begin, end) of the whole in row-major order. The names and shapes of logical
// tensors never depend on ranks, so a checkpoint written by any layout loads in every other.
struct CheckpointSlice {
  std::string name;  // "weights/model.norm.weight", "exp_avg/…", "exp_avg_sq/…", "balance/previous_counts"
  Shape shape;       // of the whole
  int64_t begin = 0, end = 0;
  Tensor data;  // (end - begin), any shape with as many elements
};

// What the weights of a parameter are called in a checkpoint.
std::string weights_name(const Parameter& parameter);

// What is stored beside the tensors.
struct CheckpointInfo {
  int64_t step = 0;         // updates done
  int64_t tokens = 0;       // valid training tokens seen
  std::string config_yaml;  // resolved config of the run
  std::string build_id;
  std::string data_digest;  // of the training data, so that a resume notices other data
  std::string parameter_table;
  int64_t num_ranks = 1, expert_parallel = 1;
};

// <folder>/step-000000100/ holds rank-00000.safetensors … and MANIFEST.json; a checkpoint of the same step is replaced.
// Commit protocol: every rank writes its file into <folder>/.tmp-step-…/ (part, fsync, rename); digests are gathered;
// rank 0 checks that the slices cover every logical tensor exactly once, writes the manifest last (self-digest inside),
// and renames the folder, with fsync of file and folder at each stage. A folder without a valid manifest is no
// checkpoint. Called by every rank; on a failure of any rank nothing is committed, the temporary folder is removed and
// every rank throws the same CheckpointError or IoError.   Returns the committed path.
std::string save_checkpoint(Context& ctx, Communicator& world, const std::string& folder, const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices);

// Committed checkpoints of a folder, oldest first (by step). Temporary and foreign entries are ignored; a damaged
// checkpoint is not, so that opening it says what is wrong.
struct CheckpointEntry {
  int64_t step;
  std::string path;
};
std::vector<CheckpointEntry> list_checkpoints(const std::string& folder);

// Removes all but the newest `keep` (0 = keep all) and the one committed last, and left-over temporary folders. Rank 0
// only.
void prune_checkpoints(const std::string& folder, int64_t keep);

// Opens a committed checkpoint: the manifest's own digest, the presence, size and header of every file are checked at
// once; the digest of a file when its first slice is read (every byte is verified before it is used).
// Errors: CheckpointError naming file and what is wrong.
class CheckpointReader : public WeightSource {
 public:
  explicit CheckpointReader(const std::string& path);
  ~CheckpointReader() override;
  CheckpointReader(CheckpointReader&&) noexcept;

  const std::string& path() const override;
  const CheckpointInfo& info() const;

  struct LogicalTensor {
    std::string name;
    DType dtype;
    Shape shape;
  };
  const std::vector<LogicalTensor>& tensors() const;         // sorted by name
  const LogicalTensor* find(const std::string& name) const;  // null if there is none
  bool contains(const std::string& name) const { return find(name) != nullptr; }
  // Fills slice.data with elements [begin, end). Throws if name, shape or dtype do not fit what is stored.
  void read(CheckpointSlice& slice) const;
  // From "weights/<name>", stored in any floating-point dtype.
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override;
  // Checks the digests of all files.
  void verify() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The checkpoint in `path`: a checkpoint folder, or a run folder (the newest of its checkpoints).
CheckpointReader open_checkpoint(const std::string& path);

}  // namespace braid
