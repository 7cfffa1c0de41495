#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weight_source.h"

namespace braid {

enum class NonFinite { kRefuse, kAllow };

// A model folder in the Hugging Face format: config.json and model.safetensors, or shards listed by
// model.safetensors.index.json. Experts may be stored one tensor per expert and projection, or as two 3-D tensors per
// layer. Opening it reads the headers and the norm weights and checks that
//   - files and index meet the rules of tensor_folder.h;
//   - every parameter of the model is there exactly once with its shape, as BF16, F16 or F32, and nothing else is: all
//     missing, unexpected and misshaped names are listed (the first 20 of each and their number). The MTP block may be
//     absent as a whole; the pieces of a parameter have one dtype, the experts of a layer one layout;
//   - norm weights are centred where they should be (norm_check.h): zero-centred norms around 0, the gated norm
//   around 1.
// Takes memory for the headers alone.   Errors: CheckpointError with file and rule.
class HuggingFaceReader : public WeightSource {
 public:
  explicit HuggingFaceReader(const std::string& folder, NonFinite non_finite = NonFinite::kRefuse);
  ~HuggingFaceReader() override;

  const std::string& path() const override;
  const ModelConfig& config() const;
  bool has_mtp() const;
  const std::vector<Parameter>& parameters() const;  // the model's parameter table, the MTP block's if it has one
  // BF16 or F32; F16 counts as F32, which holds it exactly.
  DType stored_dtype(const Parameter& parameter) const;
  int64_t total_bytes() const;  // of all tensors, as stored
  int64_t bytes_read() const override;
  std::optional<Shape> stored_shape(const Parameter& parameter) const override;

  // Errors also: CheckpointError naming tensor and element if a number is NaN or infinite and that was not allowed.
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace braid
