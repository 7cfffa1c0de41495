#include "trainer/metrics/axis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

namespace braid {
namespace {

// All labels of an axis have the same unit and number of decimals.
std::vector<std::string> tick_labels(const std::vector<double>& ticks, double step) {
  double largest = 0;
  for (double tick : ticks) largest = std::max(largest, std::abs(tick));
  std::vector<std::string> labels;
  if (largest < 1e-3 || largest >= 1e15) {
    for (double tick : ticks) labels.push_back(fmt::format("{:g}", tick));
    return labels;
  }
  double unit = 1;
  std::string_view suffixes = " kMGT";
  for (; largest / unit >= 1e4 || (unit > 1 && largest / unit >= 1e3); unit *= 1e3) suffixes.remove_prefix(1);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step / unit) + 1e-9)));
  for (double tick : ticks) {
    if (unit > 1 && tick == 0) labels.push_back("0");
    else labels.push_back(fmt::format("{:.{}f}{}", tick / unit, decimals, unit > 1 ? suffixes.substr(0, 1) : ""));
  }
  return labels;
}

}  // namespace

Axis make_axis(double low, double high, int max_ticks, double least_step) {
  Axis axis{low, high, {}, {}};
  const double size = std::max(std::abs(axis.low), std::abs(axis.high));
  if (axis.high - axis.low <= std::max(1e-6 * size, 1e-290)) {
    const double margin = size > 1e-290 ? 0.1 * size : 1;
    axis.low -= margin;
    axis.high += margin;
  }

  const double least = (axis.high - axis.low) / std::max(1, max_ticks),
               power = std::pow(10, std::floor(std::log10(least)));
  double step = 10 * power;
  for (double factor : {5.0, 2.0, 1.0})
    if (factor * power >= least) step = factor * power;
  step = std::max(step, least_step);
  for (double i = std::ceil(axis.low / step - 1e-9); i <= axis.high / step + 1e-9; ++i)
    axis.ticks.push_back(i == 0 ? 0 : i * step);  // no -0
  axis.labels = tick_labels(axis.ticks, step);
  return axis;
}

std::vector<CurvePoint> grouped_means(const std::vector<CurvePoint>& points, size_t group) {
  std::vector<CurvePoint> means;
  for (size_t begin = 0; begin < points.size(); begin += group) {
    const size_t end = std::min(points.size(), begin + group);
    CurvePoint mean{0, 0};
    for (size_t i = begin; i < end; ++i) {
      mean.first += points[i].first / double(end - begin);
      mean.second += points[i].second / double(end - begin);
    }
    means.push_back(mean);
  }
  return means;
}

std::vector<CurvePoint> grouped_extremes(const std::vector<CurvePoint>& points, size_t group) {
  if (group <= 2) return points;
  const auto by_value = [](const CurvePoint& a, const CurvePoint& b) { return a.second < b.second; };
  std::vector<CurvePoint> extremes;
  for (size_t begin = 0; begin < points.size(); begin += group) {
    const auto end = points.begin() + std::min(points.size(), begin + group);
    auto [first, second] = std::minmax_element(points.begin() + begin, end, by_value);
    if (second < first) std::swap(first, second);
    extremes.push_back(*first);
    if (first != second) extremes.push_back(*second);
  }
  return extremes;
}

std::vector<CurvePoint> moving_average(const std::vector<CurvePoint>& points) {
  const auto n = static_cast<int64_t>(points.size());
  std::vector<CurvePoint> averages(points);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t half = std::min({n / 60, i, n - 1 - i});
    double sum = 0;
    for (int64_t j = i - half; j <= i + half; ++j) sum += points[j].second / double(2 * half + 1);
    averages[i].second = sum;
  }
  return averages;
}

}  // namespace braid
