#pragma once

#include <string>
#include <utility>
#include <vector>

namespace braid {

// The range of one coordinate, never empty, with ticks at 1, 2 or 5 times a power of ten and their labels, which share
// unit and number of decimals.
struct Axis {
  double low = 0, high = 1;
  std::vector<double> ticks;
  std::vector<std::string> labels;

  double share(double value) const { return (value - low) / (high - low); }
};

// At most max_ticks ticks (at least least_step apart). A range without width is widened.
Axis make_axis(double low, double high, int max_ticks, double least_step = 0);

using CurvePoint = std::pair<double, double>;

// One point for every `group` of consecutive ones.
std::vector<CurvePoint> grouped_means(const std::vector<CurvePoint>& points, size_t group);
// The smallest and the largest of every `group` of consecutive points: what is visible of them.
std::vector<CurvePoint> grouped_extremes(const std::vector<CurvePoint>& points, size_t group);
// A moving average over a thirtieth of the points. The window is narrower towards both ends, so the curve begins and
// ends where the values do.
std::vector<CurvePoint> moving_average(const std::vector<CurvePoint>& points);

}  // namespace braid
