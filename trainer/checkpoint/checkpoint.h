#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "model/weight_source.h"
#include "parallel/communicator.h"
#include "trainer/checkpoint/checkpoint_folder.h"

namespace braid {

// A piece of a logical tensor: elements [begin, end) of the whole in row-major order. The names and shapes of logical
// tensors never depend on ranks, so a checkpoint written by any layout loads in every other.
struct CheckpointSlice {
  std::string name;  // "weights/model.norm.weight", "exp_avg/…", "exp_avg_sq_scale/…", "balance/previous_counts"
  Shape shape;       // of the whole
  int64_t begin = 0, end = 0;
  Tensor data;  // (end - begin), any shape with as many elements
  // fp32 masters that exist only as bf16 weights and low bits (kernels/split_weights.h): `data` says their dtype, shape
  // and device, but has no memory.
  Tensor split_weight = {}, split_low = {};
};

// What the weights of a parameter are called in a checkpoint.
std::string weights_name(const Parameter& parameter);

// What is stored beside the tensors.
struct CheckpointInfo {
  int64_t step = 0;    // updates done
  int64_t tokens = 0;  // valid training tokens seen
  // Rows of the steps so far: {steps done when it began, rows of a step}; empty before format 1.2.
  std::vector<std::array<int64_t, 2>> batch_sizes;
  // What of the stream of samples was left out: {steps done before, rows}. Since format 1.3.
  std::vector<std::array<int64_t, 2>> left_out;
  // What a rule that judges the next step needs of the steps so far: losses and gradient norms of the last updates,
  // oldest first, and the numbers of the last steps without an update. Since format 1.3; empty before.
  std::vector<double> recent_losses, recent_grad_norms;
  std::vector<int64_t> skipped_steps;
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
// checkpoint. LATEST names it just before the rename, as what it says decides what a run goes on from (see
// branch_checkpoints). Called by every rank; on a failure of any rank nothing is committed, the temporary folder is
// removed and every rank throws the same CheckpointError or IoError.   Returns the committed path.
std::string save_checkpoint(Context& ctx, Communicator& world, const std::string& folder, const CheckpointInfo& info,
                            const std::vector<CheckpointSlice>& slices);

// A save in the stages of its protocol, for who wants to do something else between them; save_checkpoint() does them
// one after the other. No stage communicates. Errors of each: CheckpointError, IoError; after one, rank 0 drops the
// save.
class CheckpointSave {
 public:
  CheckpointSave(const std::string& folder, const CheckpointInfo& info, int rank);
  void prepare();  // rank 0: an empty temporary folder
  // This rank's file: digested and written as the bytes come from where they lie, through at most kStagingBytes of host
  // memory (device_slices.h).   Returns its part of the manifest.
  std::string write(Context& ctx, const std::vector<CheckpointSlice>& slices);
  void commit(const std::vector<std::string>& parts);  // rank 0: every rank's, once all have written
  // This rank's file, once more and from the disk as far as the system allows, against the digests of what was written;
  // rank 0: the manifest as well.
  void read_back() const;
  // Rank 0: nothing of it stays. One that was committed already is set aside, as it is not what it should be.
  void drop() noexcept;

  const std::string& path() const { return path_; }  // where it is once it is committed

 private:
  CheckpointInfo info_;
  int rank_;
  std::string path_, temporary_;
  std::string part_, manifest_text_;
  bool is_committed_ = false;
};

// Opens a committed checkpoint: the manifest's own digest, and presence, size and header of every file, are checked at
// once, data when it is read: a byte is handed out only with the digest of its block checked on that very copy of it.
// A checkpoint before format 1.1 has no digests of blocks: a file is read whole once, against its SHA-256, to make
// them. Errors: CheckpointError naming file, tensor and what is wrong.
class CheckpointReader : public WeightSource {
 public:
  explicit CheckpointReader(const std::string& path);
  // For ranks that read it together, each its part; called by all. Rank 0 reads the manifest, files are checked by one
  // rank each. A block of which a rank reads only a part is checked when all are done: see settle().
  CheckpointReader(Context& ctx, Communicator& world, const std::string& path);
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
  bool holds_weights_alone() const;  // nothing else that a run would need to go on
  // Fills slice.data with elements [begin, end). Throws if name, shape or dtype do not fit what is stored.
  void read(CheckpointSlice& slice) const;
  // From "weights/<name>", stored in any floating-point dtype.
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override;
  std::optional<Shape> stored_shape(const Parameter& parameter) const override;
  // Puts together what the ranks that opened it together have digested of each block.
  // Throws on all of them if a block is damaged.
  void settle(Context& ctx, Communicator& world) const override;

  // Every byte of every file, in the order of the files: body(tensor, begin, block) for elements [begin, begin + n) of
  // a tensor, block (n) in its dtype, at most kDigestBlockBytes long, digests checked. Then the SHA-256 of the file.
  using Visit = std::function<void(const LogicalTensor& tensor, int64_t begin, const Tensor& block)>;
  void visit(const Visit& body) const;
  void verify() const;  // the same with nothing to do

  int64_t bytes_read() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The checkpoint in `path`: a checkpoint folder, or a run folder (the newest of its branch).
CheckpointReader open_checkpoint(const std::string& path);
// The same by ranks that read it together.
CheckpointReader open_checkpoint(Context& ctx, Communicator& world, const std::string& path);

}  // namespace braid
