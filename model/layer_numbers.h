#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace braid {

struct NamedNumber {
  std::string name;
  double value;
};

// Numbers that layers tell about a step, for metrics. A layer offers them where it plans its memory (Planner::offer)
// and its forward computes those that are wanted; here they are taken over micro-batches and ranks. A step is
//   begin_step -> per micro-batch: forward, collect -> end_step
class LayerNumbers {
 public:
  // As the layers call them: "moe/router_entropy".
  explicit LayerNumbers(std::vector<std::string> wanted = {}) : wanted_(std::move(wanted)) {}

  // Takes what is wanted from what was offered to a plan since it was last asked, and plans its memory.
  // Errors: ConfigError naming what no layer offers, and what there is.
  void plan(Planner& planner);

  // After the plan was committed to an arena.
  void begin_step();
  // Adds those of the last forward. Waits for them, if any are wanted.
  void collect(Context& ctx) { collect(ctx, *this); }
  // The same of another model of that shape, which computes other micro-batches of the step.
  void collect(Context& ctx, const LayerNumbers& other);
  // Of the whole step, the same on every rank, by layer: "moe/layer_03/router_entropy", "moe/mtp/router_entropy".
  // tokens_per_layer: valid tokens of the global batch that each layer saw, the MTP block's last.
  std::vector<NamedNumber> end_step(Context& ctx, Communicator& world, const std::vector<int64_t>& tokens_per_layer);

 private:
  std::vector<std::string> wanted_;
  std::vector<Planner::Offer> taken_;
  std::vector<double> sums_;  // or maxima so far, one per number taken
  int64_t micro_batches_ = 0;
  Tensor values_;  // (numbers taken) F64  of the last forward
};

}  // namespace braid
