#include "trainer/metrics/loss_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>

#include "tests/file_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

std::vector<std::string> lines_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Characters as a terminal counts them: UTF-8 without continuation bytes.
int64_t columns_of(const std::string& line) {
  return std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

CurveSeries straight(const std::string& name, int points, double first, double last) {
  CurveSeries s{name, {}};
  for (int i = 0; i < points; ++i) s.points.emplace_back(i + 1, first + (last - first) * i / (points - 1));
  return s;
}

// Empty if `text` is a well-formed XML document: one root, tags that close, quoted attributes, known entities.
std::string xml_problem(const std::string& text) {
  std::vector<std::string> open;
  int roots = 0;
  size_t at = 0;
  const auto check_text = [](const std::string& piece) -> std::string {
    for (size_t i = piece.find('&'); i != piece.npos; i = piece.find('&', i + 1)) {
      const std::string entity = piece.substr(i, piece.find(';', i) + 1 - i);
      if (entity != "&amp;" && entity != "&lt;" && entity != "&gt;" && entity != "&quot;") return "entity " + entity;
    }
    for (unsigned char c : piece)
      if (c < 0x20 && c != '\n') return "a control character";
    return "";
  };
  while (at < text.size()) {
    const size_t tag = text.find('<', at);
    const std::string between = text.substr(at, tag - at);
    if (open.empty() && between.find_first_not_of('\n') != between.npos) return "text outside the root: " + between;
    if (const std::string problem = check_text(between); !problem.empty()) return problem;
    if (tag == text.npos) break;
    size_t i = tag + 1;
    const bool closing = text[i] == '/';
    i += closing;
    const size_t name_begin = i;
    while (i < text.size() && (std::isalnum(static_cast<unsigned char>(text[i])) || text[i] == ':')) ++i;
    const std::string name = text.substr(name_begin, i - name_begin);
    if (name.empty()) return "a tag without a name at " + std::to_string(tag);
    while (i < text.size() && text[i] == ' ') {
      const size_t equals = text.find("=\"", i), end = text.find('"', equals + 2);
      if (equals == text.npos || end == text.npos) return "an attribute of " + name;
      const std::string value = text.substr(equals + 2, end - equals - 2);
      if (value.find('<') != value.npos) return "< in an attribute of " + name;
      if (const std::string problem = check_text(value); !problem.empty()) return problem;
      i = end + 1;
    }
    const bool empty = text[i] == '/';
    i += empty;
    if (text[i] != '>') return "tag " + name + " does not end";
    if (closing) {
      if (open.empty() || open.back() != name) return "</" + name + "> closes nothing";
      open.pop_back();
    } else if (!empty) {
      roots += open.empty();
      open.push_back(name);
    }
    at = i + 1;
  }
  if (!open.empty()) return open.back() + " is not closed";
  return roots == 1 ? "" : "not one root";
}

class LossCurve : public FolderTest {
 protected:
  void SetUp() override { use_locale("C"); }
  void TearDown() override { unsetenv("LC_ALL"); }
  static void use_locale(const char* name) { setenv("LC_ALL", name, 1); }
  std::string file(const std::string& text) const {
    write_bytes(path("metrics.jsonl"), text);
    return path("metrics.jsonl");
  }
};

TEST_F(LossCurve, ReadsSeriesByName) {
  const std::string path = file(
      "{\"step\": 1, \"train/loss_lm\": 5.5, \"tokens\": 10}\n{\"step\": 2, \"train/loss_lm\": null}\n"
      "{\"step\": 2, \"val/x/loss\": 4.5}\n{\"step\": 3, \"train/loss_lm\": 5.25}\n");
  const auto series = read_curves(path, {"val/x/loss", "train/loss_lm", "absent"});
  ASSERT_EQ(series.size(), 3u);
  EXPECT_EQ(series[0].name, "val/x/loss");
  EXPECT_EQ(series[0].points, (std::vector<std::pair<double, double>>{{2, 4.5}}));
  EXPECT_EQ(series[1].points, (std::vector<std::pair<double, double>>{{1, 5.5}, {3, 5.25}}));
  EXPECT_TRUE(series[2].points.empty());
  EXPECT_EQ(field_names(path), (std::vector<std::string>{"step", "tokens", "train/loss_lm", "val/x/loss"}));
}

TEST_F(LossCurve, SkipsATornLastLineOnly) {
  EXPECT_EQ(read_curves(file("{\"step\": 1, \"a\": 5}\n{\"step\": 2, \"a\":"), {"a"})[0].points.size(), 1u);
  const std::string path = file("{\"step\": 1, \"a\": 5}\n{\"step\": 2, \"a\":\n{\"step\": 3, \"a\": 4}\n");
  EXPECT_EQ(message_of<DataError>([&] { read_curves(path, {"a"}); }), path + ":2: is not a line of metrics");
  for (const char* line : {"{\"a\": 1}\n", "[1]\n", "{\"step\": \"1\"}\n"})
    EXPECT_THROW(read_curves(file(line), {"a"}), DataError) << line;
  EXPECT_THROW(read_curves(folder_ + "/absent.jsonl", {"a"}), IoError);
}

TEST_F(LossCurve, DrawsAStraightLineInAscii) {
  EXPECT_EQ(plot_in_terminal({straight("loss", 5, 4, 0)}, 30, 8, TerminalColor::kNo),
            "   4 +***\n"
            "     |   ******\n"
            "   2 +         ******\n"
            "     |               *****\n"
            "   0 +                    ****\n"
            "     +------+----------+------\n"
            "step        2          4\n"
            "      * loss (last 0)\n");
}

TEST_F(LossCurve, DrawsAStraightLineInBraille) {
  for (const char* locale : {"en_US.UTF-8", "C.utf8"}) {
    use_locale(locale);
    EXPECT_EQ(plot_in_terminal({straight("loss", 5, 4, 0)}, 30, 8, TerminalColor::kNo),
              "   4 ┤⠉⠒⠤⣀⡀\n"
              "     │    ⠈⠑⠒⠤⣀\n"
              "   2 ┤         ⠉⠑⠢⠤⣀⡀\n"
              "     │              ⠈⠑⠒⠤⢄⡀\n"
              "   0 ┤                   ⠈⠑⠒⠤⣀\n"
              "     └──────┬──────────┬──────\n"
              "step        2          4\n"
              "      ⠒ loss (last 0)\n")
        << locale;
  }
}

TEST_F(LossCurve, MarksAreAtTheirValues) {
  // Rows 0 to 9 hold the values 9 to 0, and a column holds a step.
  CurveSeries line{"line", {}}, marks{"marks", {}};
  for (int i = 0; i < 10; ++i) line.points.emplace_back(i, i);
  for (int i : {0, 3, 9}) marks.points.emplace_back(i, 9 - i);
  const auto lines = lines_of(plot_in_terminal({line, marks}, 96, 13, TerminalColor::kNo));
  ASSERT_EQ(lines.size(), 13u);
  const int left = 6, columns = 90;
  for (int i : {0, 3, 9}) EXPECT_EQ(lines[i].at(left + std::lround(i * (columns - 1) / 9.0)), 'o') << i;
  for (int i = 1; i < 9; ++i) EXPECT_EQ(lines[9 - i].at(left + std::lround(i * (columns - 1) / 9.0)), '*') << i;
  for (int row = 0; row < 10; ++row) EXPECT_NE(lines[row].find('*'), std::string::npos) << row;
}

TEST_F(LossCurve, AColumnOfManyValuesShowsTheirMean) {
  CurveSeries noisy{"noisy", {}}, bounds{"bounds", {{0, 0}, {0, 4}}};
  for (int i = 0; i < 10000; ++i) noisy.points.emplace_back(i, 3 + (i % 2 == 0 ? 1 : -1));
  const auto lines = lines_of(plot_in_terminal({bounds, noisy}, 30, 8, TerminalColor::kNo));
  EXPECT_EQ(lines[1].substr(6), std::string(24, 'o'));
}

TEST_F(LossCurve, HasTheSizeThatWasAskedFor) {
  const std::vector<CurveSeries> series = {straight("train/loss_lm", 1000, 5.5, 1.2), straight("val/a/loss", 7, 5, 1.3),
                                           straight("val/b/loss", 7, 5, 1.4)};
  for (const char* locale : {"C", "C.UTF-8"}) {
    use_locale(locale);
    for (const auto& [width, height] : {std::pair{30, 8}, {31, 13}, {80, 24}, {200, 50}}) {
      const auto lines = lines_of(plot_in_terminal(series, width, height, TerminalColor::kNo));
      EXPECT_EQ(static_cast<int>(lines.size()), height);
      for (const std::string& line : lines) {
        const bool is_legend = line.find("loss") != line.npos;  // a long name is not cut
        EXPECT_LE(columns_of(line), is_legend ? std::max(width, 40) : width) << line;
      }
    }
  }
}

TEST_F(LossCurve, TicksAreRoundNumbers) {
  const auto labels = [](double low, double high) {
    std::string found;
    for (const std::string& line :
         lines_of(plot_in_terminal({straight("x", 10, low, high)}, 60, 15, TerminalColor::kNo)))
      if (const size_t tick = line.find(" +"); tick != line.npos && line[tick - 1] != ' ')
        found += line.substr(line.find_first_not_of(' '), tick - line.find_first_not_of(' ')) + " ";
    return found;
  };
  EXPECT_EQ(labels(5.61, 1.47), "5 4 3 2 ");
  EXPECT_EQ(labels(2.31, 2.04), "2.30 2.25 2.20 2.15 2.10 2.05 ");
  EXPECT_EQ(labels(-1, 1), "1.0 0.5 0.0 -0.5 -1.0 ");
  EXPECT_EQ(labels(0, 12345), "10k 5k 0 ");
  EXPECT_EQ(labels(0, 1.5e6), "1.5M 1.0M 0.5M 0 ");
  EXPECT_EQ(labels(0, 2e-4), "0.0002 0.00015 0.0001 5e-05 0 ");
}

TEST_F(LossCurve, StepsAreWhole) {
  for (int steps : {1, 2, 6}) {
    CurveSeries s{"x", {}};
    for (int i = 1; i <= steps; ++i) s.points.emplace_back(i, i);
    const std::string text = plot_in_terminal({s}, 120, 10, TerminalColor::kNo);
    const std::string numbers = text.substr(text.find("\nstep") + 5, text.find('\n', text.find("\nstep") + 5));
    EXPECT_EQ(numbers.substr(0, numbers.find('\n')).find('.'), std::string::npos) << text;
    for (int i = 1; i <= steps; ++i) EXPECT_NE(numbers.find(std::to_string(i)), std::string::npos) << text;
  }
}

TEST_F(LossCurve, ColoursOnlyIfAskedFor) {
  const std::vector<CurveSeries> series = {straight("a", 50, 3, 1), straight("b", 5, 2, 1)};
  const std::string plain = plot_in_terminal(series, 60, 12, TerminalColor::kNo);
  std::string colored = plot_in_terminal(series, 60, 12, TerminalColor::kYes);
  EXPECT_EQ(plain.find('\033'), plain.npos);
  EXPECT_NE(colored.find("\033[36m"), colored.npos);
  for (size_t i; (i = colored.find('\033')) != colored.npos;) colored.erase(i, colored.find('m', i) + 1 - i);
  EXPECT_EQ(colored, plain);
}

TEST_F(LossCurve, DrawsWhateverTheNumbersAre) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const double tiny = std::numeric_limits<double>::denorm_min();
  const std::vector<std::vector<std::pair<double, double>>> cases = {
      {},
      {{1, nan}},
      {{nan, 1}, {inf, 1}},
      {{1, 5}},
      {{1, 0}, {2, 0}},
      {{1, 3e-4}, {2, 3e-4}},
      {{1, 0}, {2, tiny}},
      {{1, 1e16}, {2, 1e16 + 2}},
      {{1, -1e300}, {2, 1e300}, {3, inf}, {4, -inf}},
      {{1, 1e308}, {2, 2}},
      {{0, 1}, {1e15, 2}},
      {{5, 1}, {5, 2}},
  };
  for (const char* locale : {"C", "C.UTF-8"}) {
    use_locale(locale);
    for (size_t i = 0; i < cases.size(); ++i) {
      const std::vector<CurveSeries> series = {{"a", cases[i]}, {"b", cases[i]}};
      EXPECT_EQ(lines_of(plot_in_terminal(series, 60, 12, TerminalColor::kNo)).size(), 12u) << i;
      const std::string svg = plot_as_svg(series, "");
      EXPECT_EQ(xml_problem(svg), "") << i;
      for (const char* bad : {"nan", "inf"}) EXPECT_EQ(svg.find(bad), svg.npos) << i;
    }
  }
  EXPECT_EQ(plot_in_terminal({{"a", {}}}, 60, 12, TerminalColor::kNo).find("a (no values)") != std::string::npos, true);
  EXPECT_EQ(lines_of(plot_in_terminal({}, 60, 12, TerminalColor::kNo)).size(), 12u);
}

size_t count_of(const std::string& text, const std::string& piece) {
  size_t count = 0;
  for (size_t i = text.find(piece); i != text.npos; i = text.find(piece, i + 1)) ++count;
  return count;
}

TEST_F(LossCurve, SvgIsWellFormedWithAxesTicksAndLegend) {
  const std::string svg = plot_as_svg(
      {straight("train/loss_lm", 20, 5.61, 1.47), straight("val/<a & \"b\">/loss", 4, 5, 2)}, "runs/<x> & \"y\"\n");
  EXPECT_EQ(xml_problem(svg), "");
  for (const char* piece :
       {">step</text>", ">train/loss_lm (last 1.47)</text>", ">val/&lt;a &amp; &quot;b&quot;&gt;/loss (last 2)</text>",
        "<title>runs/&lt;x&gt; &amp; &quot;y&quot; </title>", ">5.0</text>", ">2.0</text>", ">20</text>", "#0072b2",
        "#d55e00"})
    EXPECT_EQ(svg.find(piece) != svg.npos, true) << piece;
  EXPECT_EQ(count_of(svg, "<polyline"), 2u);
  EXPECT_EQ(count_of(svg, "<circle"), 24u);
  EXPECT_EQ(svg.find("href"), svg.npos);  // nothing from outside
}

TEST_F(LossCurve, SvgOfManyPointsIsSmallAndSmoothed) {
  CurveSeries noisy{"noisy", {}};
  for (int i = 0; i < 100000; ++i) noisy.points.emplace_back(i, i % 2);
  const std::string svg = plot_as_svg({noisy}, "t");
  EXPECT_EQ(xml_problem(svg), "");
  EXPECT_LT(svg.size(), 100000u);
  const auto polyline = [&](size_t from) {
    const size_t begin = svg.find("points=\"", svg.find("<polyline", from)) + 8;
    return svg.substr(begin, svg.find('"', begin) - begin);
  };
  const std::string raw = polyline(0), smooth = polyline(svg.find("<polyline") + 1);
  // The raw line has both extremes in it, the smoothed one only their mean.
  const double first_raw = std::stod(raw.substr(raw.find(',') + 1));
  double low = INFINITY, high = -INFINITY;
  std::istringstream in(smooth);
  for (std::string point; in >> point;) {
    low = std::min(low, std::stod(point.substr(point.find(',') + 1)));
    high = std::max(high, std::stod(point.substr(point.find(',') + 1)));
  }
  EXPECT_LT(high - low, 5);
  EXPECT_GT(std::abs(low - first_raw), 100);
}

TEST_F(LossCurve, AMovingAverageEndsWhereTheValuesDo) {
  const CurveSeries steep = straight("steep", 200, 10, 0);
  const std::string svg = plot_as_svg({steep}, "t");
  const size_t raw = svg.find("points=\""), smooth = svg.find("points=\"", raw + 1);
  EXPECT_EQ(svg.substr(raw, svg.find('"', raw + 8) - raw), svg.substr(smooth, svg.find('"', smooth + 8) - smooth));
}

}  // namespace
}  // namespace braid
