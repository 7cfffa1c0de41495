#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/initial_weights.h"
#include "trainer/config/config.h"

namespace braid {

// What init.from names: weights, and the config of the model that they belong to (other sections at their defaults if
// nobody knows them).
struct StoredModel {
  std::unique_ptr<WeightSource> weights;
  RunConfig config;
  std::string name;  // with its path, for people
};

// A checkpoint, a run folder (the newest checkpoint of it), or "hf:DIR", a model folder in the Hugging Face format, of
// which every rank reads only its part. Called by all ranks.   Errors: CheckpointError, on all of them.
StoredModel open_stored_model(Context& ctx, Communicator& world, const std::string& from);

// The weights that a run begins with, out of a source that may lack what `init` allows: an MTP block
// (init.fresh_mtp), tokens of the vocabulary (init.resize_vocabulary). What is lacking is made as InitialWeights makes
// it, from the run's seed.
// Errors: CheckpointError, naming the key that would allow it.
class StartingWeights final : public WeightSource {
 public:
  StartingWeights(const WeightSource& source, const RunConfig& config);

  const std::string& path() const override { return source_.path(); }
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override;
  bool make_on_gpu(Context& ctx, const Parameter& parameter, int64_t begin, Tensor out) const override;
  void settle(Context& ctx, Communicator& world) const override { source_.settle(ctx, world); }
  int64_t bytes_read() const override { return source_.bytes_read(); }
  const std::vector<std::string>& notes() const { return notes_; }  // what is new, in words

 private:
  bool is_new(const Parameter& parameter) const;

  const WeightSource& source_;
  InitialWeights initial_;
  bool new_mtp_ = false;
  int64_t vocabulary_ = 0;  // rows that the source has of it
  std::vector<std::string> notes_;
};

}  // namespace braid
