#include "trainer/metrics/loss_curve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "kernels/core/error.h"
#include "trainer/metrics/axis.h"
#include "trainer/metrics/markup.h"
#include "trainer/metrics/step_lines.h"

namespace braid {
namespace {

using Point = std::pair<double, double>;

// Without what cannot be drawn.
std::vector<CurveSeries> drawable(std::vector<CurveSeries> series) {
  constexpr double kLargest = 1e300;  // so that the difference of two values is finite
  for (CurveSeries& s : series)
    std::erase_if(s.points,
                  [](const Point& p) { return !(std::abs(p.first) <= kLargest && std::abs(p.second) <= kLargest); });
  return series;
}

// The range of one coordinate of all points.
template <class Coordinate>
Axis axis_of(const std::vector<CurveSeries>& series, Coordinate coordinate, int max_ticks, double least_step = 0) {
  double low = INFINITY, high = -INFINITY;
  for (const CurveSeries& s : series)
    for (const Point& p : s.points) {
      low = std::min(low, p.*coordinate);
      high = std::max(high, p.*coordinate);
    }
  return low <= high ? make_axis(low, high, max_ticks, least_step) : make_axis(0, 1, max_ticks, least_step);
}

std::string legend_text(const CurveSeries& s) {
  return s.name + (s.points.empty() ? " (no values)" : fmt::format(" (last {:.5g})", s.points.back().second));
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (!value || !*value) continue;
    std::string lower(value);
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
    return lower.find("utf-8") != lower.npos || lower.find("utf8") != lower.npos;
  }
  return false;
}

// Characters of the terminal. `series` is whose colour a cell has; -1 for none.
class Canvas {
 public:
  struct Cell {
    uint8_t dots = 0;       // braille
    const char* mark = "";  // over the dots
    int series = -1;
  };
  Canvas(int rows, int columns) : rows_(rows), columns_(columns), cells_(size_t(rows) * columns) {}
  Cell& at(int row, int column) { return cells_[size_t(row) * columns_ + column]; }
  int rows() const { return rows_; }
  int columns() const { return columns_; }

  // A cell has 2 x 4 dots; Unicode numbers them down the columns, but the fourth row last.
  void set_dot(int64_t x, int64_t y) {
    constexpr uint8_t kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    Cell& cell = at(static_cast<int>(y / 4), static_cast<int>(x / 2));
    cell.dots |= kBits[y % 4][x % 2];
    cell.series = 0;
  }

 private:
  int rows_, columns_;
  std::vector<Cell> cells_;
};

std::string braille(uint8_t dots) {
  return {'\xE2', static_cast<char>(0xA0 | dots >> 6), static_cast<char>(0x80 | (dots & 0x3F))};  // U+2800 + dots
}

// The first series: straight lines between its points.
void draw_dots(Canvas& canvas, const CurveSeries& s, const Axis& x, const Axis& y) {
  int64_t last_x = -1, last_y = -1;
  for (const auto& [step, value] : s.points) {
    const int64_t to_x = std::llround(x.share(step) * (canvas.columns() * 2 - 1));
    const int64_t to_y = std::llround((1 - y.share(value)) * (canvas.rows() * 4 - 1));
    if (last_x < 0) last_x = to_x, last_y = to_y;
    const int64_t length = std::max({std::abs(to_x - last_x), std::abs(to_y - last_y), int64_t{1}});
    for (int64_t i = 0; i <= length; ++i) {
      const double share = double(i) / double(length);
      canvas.set_dot(std::llround(double(last_x) + share * double(to_x - last_x)),
                     std::llround(double(last_y) + share * double(to_y - last_y)));
    }
    last_x = to_x, last_y = to_y;
  }
}

enum class Gaps { kLeave, kFill };

// One mark per column, at the mean of the column's values. Columns in between can be filled by interpolation.
void draw_marks(Canvas& canvas, const CurveSeries& s, int index, const char* mark, const Axis& x, const Axis& y,
                Gaps gaps) {
  std::vector<double> sum(canvas.columns(), 0);
  std::vector<int64_t> count(canvas.columns(), 0);
  for (const auto& [step, value] : s.points) {
    const auto column = std::llround(x.share(step) * (canvas.columns() - 1));
    sum[column] += y.share(value);  // in [0, 1], so the sum stays finite
    ++count[column];
  }
  int last = -1;
  for (int column = 0; column < canvas.columns(); ++column) {
    if (count[column] == 0) continue;
    sum[column] /= double(count[column]);
    const int first = gaps == Gaps::kFill && last >= 0 ? last + 1 : column;
    for (int i = first; i <= column; ++i) {
      const double share = i == column ? 1 : double(i - last) / double(column - last);
      const double height = last >= 0 ? sum[last] + share * (sum[column] - sum[last]) : sum[column];
      Canvas::Cell& cell = canvas.at(static_cast<int>(std::llround((1 - height) * (canvas.rows() - 1))), i);
      cell.mark = mark;
      cell.series = index;
    }
    last = column;
  }
}

constexpr int kNumStyles = 6;
constexpr const char* kAsciiMarks[kNumStyles] = {"*", "o", "x", "+", "#", "@"};
constexpr const char* kUtf8Marks[kNumStyles] = {"⠒", "●", "▲", "■", "◆", "▼"};
constexpr const char* kTerminalColors[kNumStyles] = {"\033[36m", "\033[33m", "\033[32m",
                                                     "\033[35m", "\033[31m", "\033[34m"};
constexpr const char* kSvgColors[kNumStyles] = {"#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#555555"};

struct Glyphs {
  const char *vertical, *left_tick, *corner, *horizontal, *bottom_tick;
};
constexpr int kLegendIndent = 6, kLegendGap = 3;
constexpr Glyphs kAsciiGlyphs = {"|", "+", "+", "-", "+"};
constexpr Glyphs kUtf8Glyphs = {"│", "┤", "└", "─", "┬"};

// Switches colours only where they change.
class ColoredText {
 public:
  explicit ColoredText(TerminalColor color) : color_(color) {}
  void add(std::string_view text, int series = -1) {
    if (color_ == TerminalColor::kYes && series != current_) {
      text_ += series < 0 ? "\033[0m" : kTerminalColors[series % kNumStyles];
      current_ = series;
    }
    text_ += text;
  }
  std::string take() { return std::move(text_); }

 private:
  TerminalColor color_;
  int current_ = -1;
  std::string text_;
};

}  // namespace

std::vector<CurveSeries> read_curves(const std::string& metrics_path, const std::vector<std::string>& fields) {
  std::vector<CurveSeries> series;
  for (const std::string& field : fields) series.push_back({field, {}});
  for_each_step_line(metrics_path, "a line of metrics", [&](const nlohmann::json& line) {
    for (CurveSeries& s : series)
      if (const auto value = line.find(s.name); value != line.end() && value->is_number())
        s.points.emplace_back(line["step"].get<double>(), value->get<double>());
  });
  return series;
}

std::vector<std::string> field_names(const std::string& metrics_path) {
  std::set<std::string> names;
  for_each_step_line(metrics_path, "a line of metrics", [&](const nlohmann::json& line) {
    for (const auto& [name, value] : line.items()) names.insert(name);
  });
  return {names.begin(), names.end()};
}

std::string plot_in_terminal(const std::vector<CurveSeries>& all_series, int width, int height, TerminalColor color) {
  const std::vector<CurveSeries> series = drawable(all_series);
  const bool utf8 = locale_is_utf8();
  const Glyphs& glyph = utf8 ? kUtf8Glyphs : kAsciiGlyphs;
  const char* const* marks = utf8 ? kUtf8Marks : kAsciiMarks;
  const auto mark = [&](size_t s) { return marks[s % kNumStyles]; };

  width = std::max(width, 30);
  std::vector<std::vector<size_t>> legend(1);  // series in each of its lines
  int legend_width = kLegendIndent;
  for (size_t s = 0; s < series.size(); ++s) {
    const int entry = static_cast<int>(legend_text(series[s]).size()) + 2 + kLegendGap;
    if (legend_width + entry > width && !legend.back().empty()) {
      legend.emplace_back();
      legend_width = kLegendIndent;
    }
    legend.back().push_back(s);
    legend_width += entry;
  }

  const int rows = std::max(3, height - 2 - static_cast<int>(legend.size()));
  const Axis y = axis_of(series, &Point::second, (rows + 1) / 2);
  size_t label_width = std::string_view("step").size();
  for (const std::string& label : y.labels) label_width = std::max(label_width, label.size());
  const int left = static_cast<int>(label_width) + 2;  // labels, a space, the axis
  Canvas canvas(rows, width - left);
  const Axis x = axis_of(series, &Point::first, canvas.columns() / 8, 1);

  for (int s = 0; s < static_cast<int>(series.size()); ++s) {
    if (s == 0 && utf8) draw_dots(canvas, series[s], x, y);
    else draw_marks(canvas, series[s], s, mark(s), x, y, s == 0 ? Gaps::kFill : Gaps::kLeave);
  }

  ColoredText out(color);
  std::vector<std::string> row_labels(rows);
  for (size_t i = 0; i < y.ticks.size(); ++i)
    row_labels[std::llround((1 - y.share(y.ticks[i])) * (rows - 1))] = y.labels[i];
  for (int row = 0; row < rows; ++row) {
    out.add(fmt::format("{:>{}} ", row_labels[row], label_width));
    out.add(row_labels[row].empty() ? glyph.vertical : glyph.left_tick);
    int end = canvas.columns();
    while (end > 0 && canvas.at(row, end - 1).series < 0) --end;
    for (int column = 0; column < end; ++column) {
      const Canvas::Cell& cell = canvas.at(row, column);
      if (*cell.mark) out.add(cell.mark, cell.series);
      else out.add(cell.dots ? braille(cell.dots) : " ", cell.series);
    }
    out.add("\n");
  }

  std::vector<bool> is_tick(canvas.columns(), false);
  std::string numbers = fmt::format("{:>{}}  ", "step", label_width);
  for (size_t i = 0; i < x.ticks.size(); ++i) {
    const auto column = static_cast<int>(std::llround(x.share(x.ticks[i]) * (canvas.columns() - 1)));
    is_tick[column] = true;
    const int size = static_cast<int>(x.labels[i].size());
    const int begin = std::clamp(left + column - size / 2, left, left + canvas.columns() - size);
    if (begin < static_cast<int>(numbers.size())) continue;  // no room between its neighbours
    numbers.resize(begin, ' ');
    numbers += x.labels[i] + " ";
  }
  numbers.pop_back();
  out.add(std::string(label_width + 1, ' ') + glyph.corner);
  for (const bool tick : is_tick) out.add(tick ? glyph.bottom_tick : glyph.horizontal);
  out.add(fmt::format("\n{}\n", numbers));
  for (const std::vector<size_t>& line : legend) {
    out.add(std::string(kLegendIndent - kLegendGap, ' '));
    for (size_t s : line) {
      out.add(std::string(kLegendGap, ' '));
      out.add(mark(s), static_cast<int>(s));
      out.add(fmt::format(" {}", legend_text(series[s])));
    }
    out.add("\n");
  }
  return out.take();
}

std::string plot_as_svg(const std::vector<CurveSeries>& all_series, const std::string& title) {
  const std::vector<CurveSeries> series = drawable(all_series);
  constexpr double kWidth = 960, kHeight = 560, kRight = 28, kBottom = 58, kTitleBottom = 52, kLegendLine = 22;
  constexpr double kLegendLeft = 28, kLetter = 7.3;  // about the width of a letter of size 13
  constexpr size_t kMostDots = 60, kMostRawPoints = 150, kMostDrawn = 800;
  const Axis y = axis_of(series, &Point::second, 9), x = axis_of(series, &Point::first, 10, 1);
  size_t label_size = 0;
  for (const std::string& label : y.labels) label_size = std::max(label_size, label.size());
  const double left = 34 + kLetter * double(label_size);

  std::string legend;
  double legend_x = kLegendLeft, legend_y = kTitleBottom + 6;
  for (size_t s = 0; s < series.size(); ++s) {
    const double entry = 44 + kLetter * double(legend_text(series[s]).size());
    if (legend_x + entry > kWidth - kRight && legend_x > kLegendLeft) legend_x = kLegendLeft, legend_y += kLegendLine;
    legend += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"20\" height=\"4\" rx=\"2\" fill=\"{}\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        legend_x, legend_y - 6, kSvgColors[s % kNumStyles], legend_x + 27, legend_y,
        escape_markup(legend_text(series[s])));
    legend_x += entry;
  }

  const double top = legend_y + 20, plot_width = kWidth - left - kRight, plot_height = kHeight - top - kBottom;
  const auto at_x = [&](double step) { return left + x.share(step) * plot_width; };
  const auto at_y = [&](double value) { return top + (1 - y.share(value)) * plot_height; };

  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"system-ui, 'Helvetica Neue', Arial, sans-serif\" font-size=\"13\" fill=\"#333\">\n"
      "<title>{2}</title>\n<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<text x=\"{3}\" y=\"32\" font-size=\"18\" font-weight=\"600\">{2}</text>\n{4}",
      kWidth, kHeight, escape_markup(title), kLegendLeft, legend);

  out += "<g stroke=\"#e6e6e6\">\n";
  for (double tick : y.ticks)
    out += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left, left + plot_width,
                       at_y(tick), at_y(tick));
  for (double tick : x.ticks)
    out += fmt::format("<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", at_x(tick), at_x(tick), top,
                       top + plot_height);
  out += "</g>\n<g text-anchor=\"end\">\n";
  for (size_t i = 0; i < y.ticks.size(); ++i)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left - 9, at_y(y.ticks[i]) + 4.5, y.labels[i]);
  out += "</g>\n<g text-anchor=\"middle\">\n";
  for (size_t i = 0; i < x.ticks.size(); ++i)
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", at_x(x.ticks[i]), top + plot_height + 20,
                       x.labels[i]);
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\">step</text>\n</g>\n"
      "<path d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\" fill=\"none\" stroke=\"#888\"/>\n",
      left + plot_width / 2, kHeight - 14, left, top, top + plot_height, left + plot_width);

  const auto polyline = [&](const std::vector<Point>& points, const char* style) {
    out += fmt::format("<polyline {} points=\"", style);
    for (const auto& [step, value] : points) out += fmt::format("{:.1f},{:.1f} ", at_x(step), at_y(value));
    out += "\"/>\n";
  };
  for (size_t s = 0; s < series.size(); ++s) {
    const std::vector<Point>& points = series[s].points;
    const char* color = kSvgColors[s % kNumStyles];
    out += fmt::format("<g stroke=\"{0}\" fill=\"none\" stroke-linejoin=\"round\" stroke-linecap=\"round\">\n", color);
    if (points.size() > kMostRawPoints) {
      const size_t group = (points.size() + kMostDrawn - 1) / kMostDrawn;
      polyline(grouped_extremes(points, group), "stroke-width=\"1\" stroke-opacity=\"0.3\"");
      polyline(moving_average(grouped_means(points, group)), "stroke-width=\"2\"");
    } else {
      polyline(points, "stroke-width=\"2\"");
    }
    if (points.size() <= kMostDots)
      for (const auto& [step, value] : points)
        out +=
            fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", at_x(step), at_y(value), color);
    out += "</g>\n";
  }
  return out + "</svg>\n";
}

}  // namespace braid
