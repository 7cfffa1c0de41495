#pragma once

#include <array>
#include <cstdint>

#include "kernels/core/enum_names.h"

namespace braid {

// Which norm weights decay. The gated norm, A_log and dt_bias never do.
enum class NormWeightDecay { kAllZeroCentred, kQkOnly, kNone };
template <>
struct EnumNames<NormWeightDecay> {
  static constexpr std::array kNames = {"all_zero_centred", "qk_only", "none"};
};

// How the moments are stored: kFp32 stands for the dtype of the weights that are updated, which is fp64 in an fp64 run.
enum class MomentDType { kFp32, kBf16 };
template <>
struct EnumNames<MomentDType> {
  static constexpr std::array kNames = {"fp32", "bf16"};
};

struct OptimizerConfig {
  double lr = 3e-4;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
  NormWeightDecay norm_weight_decay = NormWeightDecay::kAllZeroCentred;
  MomentDType moment_dtype = MomentDType::kFp32;
  double max_grad_norm = 1.0;

  template <class Visit>
  void visit(Visit&& key) {
    key("lr", lr, "peak learning rate of AdamW");
    key("beta1", beta1, "decay of the first moment");
    key("beta2", beta2, "decay of the second moment");
    key("eps", eps, "added to the root of the second moment");
    key("weight_decay", weight_decay, "decoupled weight decay");
    key("norm_weight_decay", norm_weight_decay, "which zero-centred norm weights decay");
    key("moment_dtype", moment_dtype, "of both moments; bf16 needs a GPU and beta2 of at most 0.99");
    key("max_grad_norm", max_grad_norm, "clip the global gradient norm to this; 0 = off");
  }
};

}  // namespace braid
