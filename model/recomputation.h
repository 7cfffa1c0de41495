#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "model/recompute.h"

namespace braid {

// What the layers of a model make again: all of them what `policy` says, and the first `further` of them what the next
// dearer one says. They are counted from the one that frees most memory for a product made again: those of Gated
// DeltaNet, then those of attention, the MTP block the last. Each step along policies and `further` takes more time and
// less memory. The bits are the same with every mix.
struct Recomputation {
  Recompute policy = Recompute::kNone;
  int64_t further = 0;
  Recomputation(Recompute policy = Recompute::kNone, int64_t further = 0) : policy(policy), further(further) {}
  bool operator==(const Recomputation&) const = default;
};

int64_t num_recomputed_layers(const ModelConfig& model, const MtpConfig& mtp);
// Of every layer, the MTP block's last.
std::vector<Recompute> recompute_of_layers(const ModelConfig& model, const MtpConfig& mtp,
                                           const Recomputation& recomputation);
// "moe", "moe, layer in 12 of 49 layers"
std::string to_text(const Recomputation& recomputation, int64_t num_layers);

}  // namespace braid
