#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/core/enum_names.h"

namespace braid {

// How rotary positions are stretched over longer rows than a model was first trained on.
enum class RopeType {
  kDefault,  // not at all
  kLinear,   // every frequency is divided by `factor`
  kYarn,     // fast pairs keep theirs, slow ones are divided, with a ramp between; arXiv 2309.00071
};
template <>
struct EnumNames<RopeType> {
  static constexpr std::array kNames = {"default", "linear", "yarn"};
};

// Every key is a key of rope_parameters in transformers' config.json.
struct RopeParameters {
  RopeType rope_type = RopeType::kDefault;
  double factor = 1;
  int64_t original_max_position_embeddings = 0;  // 0: max_position_embeddings
  double attention_factor = 0;                   // 0: from factor, mscale and mscale_all_dim
  double beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;
  bool truncate = true;
  template <class Visit>
  void visit(Visit&& key) {
    key("rope_type", rope_type, "how rotary positions are stretched: default (not at all), linear or yarn");
    key("factor", factor, "of linear and yarn: how much longer rows become");
    key("original_max_position_embeddings", original_max_position_embeddings,
        "of yarn: the longest rows the model was first trained on; 0 = max_position_embeddings");
    key("attention_factor", attention_factor, "of yarn: what queries and keys are scaled by; 0 = by the formula");
    key("beta_fast", beta_fast,
        "of yarn: pairs that turn more often than this in the original length keep their speed");
    key("beta_slow", beta_slow, "of yarn: pairs that turn less often are slowed down by the factor");
    key("mscale", mscale, "of yarn: with mscale_all_dim another formula of attention_factor; 0 = none");
    key("mscale_all_dim", mscale_all_dim, "of yarn: see mscale; 0 = none");
    key("truncate", truncate, "of yarn: the ramp begins and ends at whole pairs");
  }

  // What cos and sin are multiplied by.
  double rotation_scale() const {
    if (rope_type != RopeType::kYarn) return 1;
    if (attention_factor != 0) return attention_factor;
    const auto grown = [&](double scale) { return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1; };
    return mscale != 0 && mscale_all_dim != 0 ? grown(mscale) / grown(mscale_all_dim) : grown(1);
  }
};

// Frequency of every pair of dimensions: theta^(-2 pair / rotary_dim), stretched. In T as torch forms it in fp32.
// Source: ROPE_INIT_FUNCTIONS of transformers.
template <class T>
struct RotaryFrequencies {
  RopeType type;
  T factor;
  T low, width;  // the ramp of yarn, in pairs

  RotaryFrequencies(const RopeParameters& p, int64_t rotary_dim, double theta)
      : type(p.rope_type), factor(static_cast<T>(p.factor)), low(0), width(1) {
    if (type != RopeType::kYarn) return;
    constexpr double kTurn = 6.283185307179586;
    const auto dim = static_cast<double>(rotary_dim);
    // The pair, as a real number, that turns so often over the original length.
    const auto pair_of = [&](double turns) {
      return dim * std::log(static_cast<double>(p.original_max_position_embeddings) / (turns * kTurn)) /
             (2 * std::log(theta));
    };
    double first = pair_of(p.beta_fast), last = pair_of(p.beta_slow);
    if (p.truncate) first = std::floor(first), last = std::ceil(last);
    first = std::max(first, 0.0), last = std::min(last, dim - 1);
    if (first == last) last += 0.001;
    low = static_cast<T>(first);
    width = static_cast<T>(last - first);
  }

  // power: theta^(2 pair / rotary_dim)
  constexpr T of(int64_t pair, T power) const {
    const T fast = T(1) / power;
    if (type == RopeType::kDefault) return fast;
    if (type == RopeType::kLinear) return fast / factor;
    const T at = (static_cast<T>(pair) - low) / width, slowed = at < T(0) ? T(0) : at > T(1) ? T(1) : at;
    const T kept = T(1) - slowed;
    return T(1) / (factor * power) * (T(1) - kept) + fast * kept;
  }
};

}  // namespace braid
