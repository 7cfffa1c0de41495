#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "trainer/parity/comparison.h"

namespace braid {

struct ParityOptions {
  std::string model;      // Hugging Face folder
  std::string reference;  // file
  DeviceChoice device = DeviceChoice::kCpu;
  Precision precision = Precision::kFp32;
  std::optional<double> rtol;
  Recompute recompute = Recompute::kNone;
};

struct ParityReport {
  std::vector<TensorVerdict> tensors;     // logits, mtp_logits, gradients
  std::vector<CurveVerdict> curves;       // loss; or losses and grad_norms of a training
  std::vector<std::string> not_compared;  // parameters whose gradients the file does not hold, if it holds any
  // Positions of mtp_logits that were compared, and all: what follows a document's last token is not.
  int64_t mtp_compared = 0, mtp_positions = 0;

  bool passed() const;
};

// Runs the model on the tokens of a reference file and compares logits, loss and gradients with those in the file, as
// far as it holds them; docs/parity.md says what they must be. Logits are formed and read in blocks and never exist
// whole.   Errors: DataError for the file, CheckpointError for the folder.
ParityReport check_forward(Context& ctx, const ParityOptions& options);

// Trains the model on the batches of a training reference with AdamW (constant learning rate, decay of tensors with
// more than one dimension, no MTP, no balance loss) and compares the curves.   Errors: as above, and NumericsError.
ParityReport check_training(Context& ctx, const ParityOptions& options);

}  // namespace braid
