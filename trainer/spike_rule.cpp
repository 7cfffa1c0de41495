#include "trainer/spike_rule.h"

#include <cmath>
#include <cstdio>

namespace braid {
namespace {

std::string judge_one(const char* what, double x, const std::vector<double>& window) {
  double mean = 0, variance = 0;
  for (const double value : window) mean += value / double(window.size());
  for (const double value : window) variance += (value - mean) * (value - mean) / double(window.size());
  const double sigma = std::sqrt(variance);
  if (!(x > mean + SpikeRule::kSigmas * sigma)) return "";
  char text[160];
  std::snprintf(text, sizeof text,
                "the %s %.6g is more than %g standard deviations (%.3g) above the mean %.6g of the last %zu steps",
                what, x, SpikeRule::kSigmas, sigma, mean, window.size());
  return text;
}

void keep_newest(std::vector<double>& window, double x) {
  window.push_back(x);
  if (static_cast<int64_t>(window.size()) > SpikeRule::kWindow) window.erase(window.begin());
}

}  // namespace

std::string SpikeRule::judge(double loss, double grad_norm) const {
  if (static_cast<int64_t>(losses_.size()) < kWindow) return "";
  const std::string text = judge_one("loss", loss, losses_);
  return text.empty() ? judge_one("gradient norm", grad_norm, grad_norms_) : text;
}

void SpikeRule::add(double loss, double grad_norm) {
  keep_newest(losses_, loss);
  keep_newest(grad_norms_, grad_norm);
}

}  // namespace braid
