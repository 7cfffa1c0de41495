#pragma once

#include <array>

namespace braid {

// The operators of the catalogue that training runs, by the names that `allow_slow` takes.
inline constexpr std::array kOperatorNames = {"matmul",           "embedding",      "rms_norm",         "gdn_inputs",
                                              "gated_delta_rule", "gated_rms_norm", "attention_inputs", "attention",
                                              "router",           "experts",        "expert_rows",      "swiglu",
                                              "mtp_inputs",       "adamw",          "lm_head_loss"};

}  // namespace braid
