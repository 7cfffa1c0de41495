#pragma once

#include <array>
#include <cstdint>

#include "kernels/core/enum_names.h"

namespace braid {

// Muon updates matrices, AdamW what is none: see MuonRule.
enum class OptimizerKind { kAdamW, kMuon };
template <>
struct EnumNames<OptimizerKind> {
  static constexpr std::array kNames = {"adamw", "muon"};
};

// Which norm weights decay. The gated norm, A_log and dt_bias never do.
enum class NormWeightDecay { kAllZeroCentred, kQkOnly, kNone };
template <>
struct EnumNames<NormWeightDecay> {
  static constexpr std::array kNames = {"all_zero_centred", "qk_only", "none"};
};

// How the moments are stored: kFp32 stands for the dtype of the weights that are updated, which is fp64 in an fp64 run.
// kInt8: those of matrices in a byte each (kernels/core/moment_codes.h), the others as wide as kFp32.
enum class MomentDType { kFp32, kBf16, kInt8 };
template <>
struct EnumNames<MomentDType> {
  static constexpr std::array kNames = {"fp32", "bf16", "int8"};
};

// How the gradients of the routed experts' weights are stored; those of all others are as wide as masters.
enum class GradientDType { kFp32, kBf16 };
template <>
struct EnumNames<GradientDType> {
  static constexpr std::array kNames = {"fp32", "bf16"};
};

struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double lr = 3e-4;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double muon_momentum = 0.95, muon_update_rms = 0.2;
  double weight_decay = 0.1;
  NormWeightDecay norm_weight_decay = NormWeightDecay::kAllZeroCentred;
  MomentDType moment_dtype = MomentDType::kFp32;
  GradientDType gradient_dtype = GradientDType::kFp32;
  double max_grad_norm = 1.0;

  template <class Visit>
  void visit(Visit&& key) {
    key("kind", kind, "adamw, or muon for hidden matrices and AdamW for the rest");
    key("lr", lr, "peak learning rate");
    key("beta1", beta1, "AdamW: decay of the first moment");
    key("beta2", beta2, "AdamW: decay of the second moment");
    key("eps", eps, "AdamW: added to the root of the second moment");
    key("muon_momentum", muon_momentum, "Muon: decay of the momentum");
    key("muon_update_rms", muon_update_rms, "Muon: size of an update at lr 1; 0.2 is about that of AdamW");
    key("weight_decay", weight_decay, "decoupled weight decay");
    key("norm_weight_decay", norm_weight_decay, "which zero-centred norm weights decay");
    key("moment_dtype", moment_dtype, "of the moments; bf16 needs a GPU, int8 kind adamw; both beta2 of at most 0.999");
    key("gradient_dtype", gradient_dtype, "of the routed experts' gradients; bf16 needs precision bf16");
    key("max_grad_norm", max_grad_norm, "clip the global gradient norm to this; 0 = off");
  }
};

}  // namespace braid
