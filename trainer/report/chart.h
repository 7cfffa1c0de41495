#pragma once

#include <string>
#include <utility>
#include <vector>

namespace braid {

// A curve in a chart: `style` numbers its colour, dash pattern and letter (0 = A), so that curves differ without colour
// too.
struct ChartCurve {
  int style = 0;
  std::vector<std::pair<double, double>> points;  // x never falls
};

struct ChartSpec {
  std::string title, x_label, y_label;
  std::vector<ChartCurve> curves;
  bool smooth = false;     // a moving average over the pale raw values, where there are many
  bool zero_line = false;  // marks y = 0
  double x_unit = 1;       // ticks are x / x_unit
};

// An SVG element without colours of its own: classes r (raw), s (smooth) and k0, k1, … (style) are for a style sheet.
// At most `most_points` points are drawn per curve. No two letters overlap, however many curves end beside each other:
// one that is moved away from its curve's end is tied to it by a line (class lead).
enum class ChartShape { kWide, kNarrow };
std::string draw_chart(const ChartSpec& spec, ChartShape shape, int most_points);

inline constexpr int kNumChartStyles = 8;
// "A", …, "Z", "A1", …
std::string style_letter(int style);

}  // namespace braid
