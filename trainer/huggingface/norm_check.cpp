#include "trainer/huggingface/norm_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/core/error.h"

namespace braid {
namespace {

enum class Centring { kZero, kOne, kUnclear };

struct Found {
  Centring centring = Centring::kUnclear;
  double median = 0;
  double share_not_positive = 0;
};

Found find_centring(std::vector<double> weights) {
  constexpr double kBand = 0.25, kFew = 0.05;
  std::erase_if(weights, [](double w) { return !std::isfinite(w); });
  if (weights.empty()) return {};
  const auto middle = weights.begin() + static_cast<std::ptrdiff_t>(weights.size() / 2);
  std::nth_element(weights.begin(), middle, weights.end());
  const auto not_positive = std::count_if(weights.begin(), weights.end(), [](double w) { return w <= 0; });
  Found found{.median = *middle,
              .share_not_positive = static_cast<double>(not_positive) / static_cast<double>(weights.size())};
  const bool few = found.share_not_positive < kFew;
  if (few && std::abs(found.median - 1) <= kBand) found.centring = Centring::kOne;
  if (!few && std::abs(found.median) <= kBand) found.centring = Centring::kZero;
  return found;
}

}  // namespace

void check_norm_centring(const std::string& folder, std::vector<double> zero_centred, std::vector<double> gated) {
  const auto check_kind = [&](const char* norms, std::vector<double> weights, Centring wrong, const char* verdict) {
    const Found found = find_centring(std::move(weights));
    check<CheckpointError>(found.centring != wrong, folder, ": the weights of ", norms, " have the median ",
                           found.median, ", and ", 100 * found.share_not_positive,
                           " % of them are 0 or less: ", verdict);
  };
  check_kind("all zero-centred norms", std::move(zero_centred), Centring::kOne,
             "they are stored as 1 + w, so 1 must be subtracted from each");
  check_kind("all linear_attn.norm", std::move(gated), Centring::kZero,
             "they are stored around zero, but this norm is a plain scale, so 1 must be added to each");
}

}  // namespace braid
