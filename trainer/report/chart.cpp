#include "trainer/report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/metrics/axis.h"
#include "trainer/metrics/markup.h"

namespace braid {
namespace {

using Point = std::pair<double, double>;

std::vector<Point> drawable(const std::vector<Point>& points) {
  std::vector<Point> kept;
  for (const Point& p : points)
    if (std::isfinite(p.first) && std::isfinite(p.second) && std::abs(p.second) < 1e300) kept.push_back(p);
  return kept;
}

// Early values are far from the rest and would flatten it: the axis begins at the value that only 2 % lie above or
// below by more than twice the spread of the others.
void shorten(std::vector<ChartCurve>& curves, double& low, double& high) {
  std::vector<double> values;
  for (const ChartCurve& c : curves)
    for (const Point& p : c.points) values.push_back(p.second);
  if (values.empty()) return;
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) { return values[size_t(share * double(values.size() - 1))]; };
  const double spread = at(0.98) - at(0.02);
  low = std::max(values.front(), at(0.02) - spread);
  high = std::min(values.back(), at(0.98) + spread);
}

// Rising values, moved as little as it takes to lie in [low, high], at least `distance` from each other, where there is
// room for them.
std::vector<double> spread_apart(std::vector<double> values, double distance, double low, double high) {
  for (double& value : values) {
    value = std::max(value, low);
    low = value + distance;
  }
  for (auto value = values.rbegin(); value != values.rend(); ++value) {
    *value = std::min(*value, high);
    high = *value - distance;
  }
  return values;
}

}  // namespace

std::string style_letter(int style) {
  const std::string letter(1, static_cast<char>('A' + style % 26));
  return style < 26 ? letter : letter + std::to_string(style / 26);
}

std::string draw_chart(const ChartSpec& spec, ChartShape shape, int most_points) {
  const bool narrow = shape == ChartShape::kNarrow;
  const double width = narrow ? 380 : 980, height = narrow ? 300 : 380, right = 30, top = 14, bottom = 46;
  const double font = narrow ? 12 : 13, letter_width = font * 0.58;

  std::vector<ChartCurve> curves = spec.curves;
  for (ChartCurve& c : curves) {
    c.points = drawable(c.points);
    for (Point& p : c.points) p.first /= spec.x_unit;
  }
  double low = 0, high = 1;
  shorten(curves, low, high);
  if (spec.zero_line) low = std::min(low, 0.0), high = std::max(high, 0.0);
  double first = 0, last = 0;
  bool any = false;
  for (const ChartCurve& c : curves)
    for (const Point& p : c.points) {
      first = any ? std::min(first, p.first) : p.first;
      last = any ? std::max(last, p.first) : p.first;
      any = true;
    }
  if (!any) return "<p class=none>no values</p>";
  const Axis y = make_axis(low, high, narrow ? 6 : 8), x = make_axis(first, last, narrow ? 4 : 9);
  size_t label_size = 1;
  for (const std::string& label : y.labels) label_size = std::max(label_size, label.size());
  const double left = 14 + letter_width * double(label_size);
  const double plot_width = width - left - right, plot_height = height - top - bottom;
  const auto at_x = [&](double v) { return left + x.share(v) * plot_width; };
  const auto at_y = [&](double v) { return top + (1 - std::clamp(y.share(v), -0.02, 1.02)) * plot_height; };

  std::string out = fmt::format(
      "<svg class=\"{}\" viewBox=\"0 0 {} {}\" font-size=\"{}\" role=\"img\" aria-label=\"{}\"><g class=grid>",
      narrow ? "narrow" : "wide", width, height, font, escape_markup(spec.title));
  for (const double tick : y.ticks)
    out += fmt::format("<path d=\"M{:.1f} {:.1f}h{:.1f}\"/>", left, at_y(tick), plot_width);
  for (const double tick : x.ticks)
    out += fmt::format("<path d=\"M{:.1f} {:.1f}v{:.1f}\"/>", at_x(tick), top, plot_height);
  out += "</g>";
  if (spec.zero_line && low <= 0 && high >= 0)
    out += fmt::format("<path class=zero d=\"M{:.1f} {:.1f}h{:.1f}\"/>", left, at_y(0), plot_width);
  out += "<g class=ticks text-anchor=end>";
  for (size_t i = 0; i < y.ticks.size(); ++i)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", left - 6, at_y(y.ticks[i]) + font / 3, y.labels[i]);
  out += "</g><g class=ticks text-anchor=middle>";
  for (size_t i = 0; i < x.ticks.size(); ++i)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", at_x(x.ticks[i]), top + plot_height + font + 5,
                       x.labels[i]);
  out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text></g>", left + plot_width / 2, height - 8,
                     escape_markup(spec.x_label));

  const auto polyline = [&](const std::vector<Point>& points, const char* kind, int style) {
    out += fmt::format("<polyline class=\"{} k{}\" points=\"", kind, style % kNumChartStyles);
    for (const Point& p : points) out += fmt::format("{:.1f},{:.1f} ", at_x(p.first), at_y(p.second));
    out += "\"/>";
  };
  struct End {
    double x, y;
    int style;
  };
  std::vector<End> ends;
  constexpr size_t kMostRawPoints = 60;
  for (const ChartCurve& c : curves) {
    if (c.points.empty()) continue;
    const size_t group = (c.points.size() + most_points - 1) / most_points;
    std::vector<Point> shown = grouped_means(c.points, group);
    if (spec.smooth && c.points.size() > kMostRawPoints) {
      polyline(grouped_extremes(c.points, 2 * group), "r", c.style);
      shown = moving_average(shown);
    }
    polyline(shown, "s", c.style);
    if (c.points.size() == 1)
      out += fmt::format("<circle class=\"dot k{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\"/>", c.style % kNumChartStyles,
                         at_x(shown[0].first), at_y(shown[0].second));
    ends.push_back({at_x(shown.back().first), at_y(shown.back().second), c.style});
  }
  // The letters at the ends of curves, moved apart so that all can be read; more than fit are smaller.
  std::sort(ends.begin(), ends.end(), [](const End& a, const End& b) { return a.y < b.y; });
  std::vector<double> heights;
  for (const End& end : ends) heights.push_back(end.y);
  const double line = std::min(font, plot_height / double(ends.size()));
  const std::vector<double> spread = spread_apart(heights, line, top, top + plot_height);
  const auto is_moved = [&](size_t i) { return std::abs(spread[i] - heights[i]) > line / 2; };
  bool any_moved = false;
  for (size_t i = 0; i < ends.size(); ++i) any_moved |= is_moved(i);
  const double gap = any_moved ? 14 : 5;
  out += fmt::format("<g font-size=\"{:.1f}\">", line);
  for (size_t i = 0; i < ends.size(); ++i) {
    const End& end = ends[i];
    const int k = end.style % kNumChartStyles;
    if (is_moved(i))
      out += fmt::format("<path class=\"lead k{}\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>", k, end.x, end.y,
                         end.x + gap - 2, spread[i]);
    out += fmt::format("<text class=\"end k{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", k, end.x + gap,
                       spread[i] + line / 3, style_letter(end.style));
  }
  return out + "</g></svg>";
}

}  // namespace braid
