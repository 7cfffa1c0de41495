#pragma once

#include <array>
#include <string>

#include "kernels/core/arena.h"
#include "kernels/core/enum_names.h"

namespace braid {

// What backward makes again instead of finding it as forward left it; see LayerPart for what that is. The bits are the
// same with each of them.
enum class Recompute {
  kNone,
  kElementwise,  // norms, gates, convolutions, gathered rows; no product and no transfer between ranks
  kMoe,          // that, and everything of the experts: their rows travel again
  kLayer,        // everything but the residual stream and where tokens were routed
  kAuto,         // for the config: the first of these with which a run fits; a model is never given it
};
template <>
struct EnumNames<Recompute> {
  static constexpr std::array kNames = {"none", "elementwise", "moe", "layer", "auto"};
};

// The dearer, the less memory.
inline constexpr Recompute kRecomputePolicies[] = {Recompute::kNone, Recompute::kElementwise, Recompute::kMoe,
                                                   Recompute::kLayer};

// The two halves of a layer. Between them lies the residual stream, which is always kept; so a half is made again, and
// left again by backward, before the other is.
enum class LayerPart { kMixer, kMoe };
enum class Remake { kNothing, kElementwise, kEverything };
constexpr Remake remake_of(LayerPart part, Recompute recompute) {
  switch (recompute) {
    case Recompute::kElementwise: return Remake::kElementwise;
    case Recompute::kMoe: return part == LayerPart::kMoe ? Remake::kEverything : Remake::kElementwise;
    case Recompute::kLayer: return Remake::kEverything;
    case Recompute::kNone:
    case Recompute::kAuto: break;
  }
  return Remake::kNothing;
}

// Where layers say what forward leaves for backward, and how it would be made again. What is made again lies in memory
// that the parts of all layers share.
class SavedPlan {
 public:
  // num_parts: rows of a batch whose rows are parts of longer ones, or 0.
  SavedPlan(Planner& planner, Recompute recompute, int64_t num_parts = 0)
      : planner_(planner), recompute_(recompute), num_parts_(num_parts) {}
  Planner& planner() { return planner_; }
  int64_t num_parts() const { return num_parts_; }

  void begin(LayerPart part) {
    remake_ = remake_of(part, recompute_);
    planner_.begin_shared();
  }
  void keep(const std::string& name, Tensor& slot, Shape shape, DType dtype) { planner_.add(name, slot, shape, dtype); }
  // Made again by passes over elements and rows, or by products and whatever else it takes.
  void by_elements(const std::string& name, Tensor& slot, Shape shape, DType dtype) {
    add(name, slot, shape, dtype, remake_ >= Remake::kElementwise);
  }
  void by_products(const std::string& name, Tensor& slot, Shape shape, DType dtype) {
    add(name, slot, shape, dtype, remake_ >= Remake::kEverything);
  }

 private:
  void add(const std::string& name, Tensor& slot, Shape shape, DType dtype, bool again) {
    if (again) planner_.add_shared(name, slot, shape, dtype);
    else planner_.add(name, slot, shape, dtype);
  }
  Planner& planner_;
  Recompute recompute_;
  int64_t num_parts_;
  Remake remake_ = Remake::kNothing;
};

}  // namespace braid
