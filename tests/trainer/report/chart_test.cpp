#include "trainer/report/chart.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <regex>

namespace braid {
namespace {

struct Drawn {
  double height = 0, font = 0, plot_top = 0, plot_bottom = 0;
  std::map<std::string, std::pair<double, double>> letters;                   // x, middle
  std::vector<std::pair<double, double>> curve_ends, lead_begins, lead_ends;  // x, y
};

// Of curves that end at these values, after as many steps as `lengths` says, or ten.
Drawn draw(const std::vector<double>& values, ChartShape shape, const std::vector<int>& lengths = {}) {
  ChartSpec spec{"title", "x", "", {}};
  for (size_t i = 0; i < values.size(); ++i) {
    spec.curves.push_back({static_cast<int>(i), {}});
    const int length = lengths.empty() ? 10 : lengths[i];
    for (int step = 0; step <= length; ++step)
      spec.curves.back().points.emplace_back(step, values[i] + 0.1 * (length - step));
  }
  const std::string svg = draw_chart(spec, shape, 100);
  const auto all = [&](const char* pattern, auto&& take) {
    const std::regex expression(pattern);
    for (std::sregex_iterator m(svg.begin(), svg.end(), expression), end; m != end; ++m) take(*m);
  };
  const auto number = [](const std::ssub_match& text) { return std::stod(text.str()); };
  Drawn drawn;
  all("<g font-size=\"([0-9.]+)\">", [&](auto& m) { drawn.font = number(m[1]); });
  all("<text class=\"end k\\d\" x=\"([0-9.]+)\" y=\"([0-9.]+)\">([A-Z0-9]+)<", [&](auto& m) {
    drawn.letters[m[3]] = {number(m[1]), number(m[2]) - drawn.font / 3};
  });
  all("<path d=\"M[0-9.]+ ([0-9.]+)v([0-9.]+)\"/>", [&](auto& m) {  // a line of the grid
    drawn.plot_top = number(m[1]), drawn.plot_bottom = drawn.plot_top + number(m[2]);
  });
  all("([0-9.]+),([0-9.]+) \"/>", [&](auto& m) { drawn.curve_ends.emplace_back(number(m[1]), number(m[2])); });
  all("<path class=\"lead k\\d\" d=\"M([0-9.]+) ([0-9.]+)L([0-9.]+) ([0-9.]+)\"/>", [&](auto& m) {
    drawn.lead_begins.emplace_back(number(m[1]), number(m[2]));
    drawn.lead_ends.emplace_back(number(m[3]), number(m[4]));
  });
  return drawn;
}

constexpr double kRounding = 0.11;  // numbers have one decimal

// Every curve has a letter of its own beside the plot, a line away from all others, and the way to it can be seen.
void expect_readable(const Drawn& drawn, size_t curves) {
  ASSERT_EQ(drawn.letters.size(), curves);
  ASSERT_EQ(drawn.curve_ends.size(), curves);
  std::vector<double> middles;
  for (const auto& [letter, place] : drawn.letters) {
    const auto [x, y] = place;
    middles.push_back(y);
    EXPECT_GE(y, drawn.plot_top - kRounding) << letter;
    EXPECT_LE(y, drawn.plot_bottom + kRounding) << letter;
    const auto lies = [x = x, y = y](const auto& end) {
      return end.first < x && end.first > x - 20 && std::abs(end.second - y) < 0.3;
    };
    const auto lies_near = [&, x = x, y = y](const auto& end) {
      return end.first < x && end.first > x - 20 && std::abs(end.second - y) <= drawn.font / 2 + 2 * kRounding;
    };
    EXPECT_TRUE(std::any_of(drawn.lead_ends.begin(), drawn.lead_ends.end(), lies) ||
                std::any_of(drawn.curve_ends.begin(), drawn.curve_ends.end(), lies_near))
        << letter << " stands alone";
  }
  std::sort(middles.begin(), middles.end());
  for (size_t i = 1; i < middles.size(); ++i) EXPECT_GE(middles[i] - middles[i - 1], drawn.font - 2 * kRounding) << i;
  for (const auto& begin : drawn.lead_begins)
    EXPECT_TRUE(std::find(drawn.curve_ends.begin(), drawn.curve_ends.end(), begin) != drawn.curve_ends.end())
        << "a line begins at " << begin.first << ", " << begin.second << ", where no curve ends";
}

TEST(Chart, FewCurvesHaveTheirLettersAtTheirEnds) {
  const Drawn drawn = draw({2, 3, 4}, ChartShape::kWide);
  expect_readable(drawn, 3);
  EXPECT_TRUE(drawn.lead_ends.empty());
  EXPECT_EQ(drawn.font, 13);
  for (const char* letter : {"A", "B", "C"})
    EXPECT_NEAR(drawn.letters.at(letter).first, drawn.curve_ends[0].first + 5, kRounding);
  EXPECT_GT(drawn.letters.at("A").second, drawn.letters.at("B").second) << "the lowest curve is the lowest letter";
}

TEST(Chart, LettersOfManyCurvesAreApartWhereverTheCurvesEnd) {
  for (const ChartShape shape : {ChartShape::kWide, ChartShape::kNarrow})
    for (const int curves : {2, 11, 18, 40}) {
      std::vector<double> low, high, same(curves, 2.0), two_groups;
      std::vector<int> lengths;
      for (int i = 0; i < curves; ++i) {
        low.push_back(2 + 1e-3 * i);
        high.push_back(9 - 1e-3 * i);
        two_groups.push_back((i % 2 ? 2 : 5) + 1e-3 * i);
        lengths.push_back(2 + i % 9);
      }
      low.back() = 9;  // so that the others lie at the bottom
      high.back() = 2;
      for (const std::vector<double>& values : {low, high, same, two_groups}) {
        SCOPED_TRACE(curves);
        expect_readable(draw(values, shape), curves);
        expect_readable(draw(values, shape, lengths), curves);
      }
    }
}

}  // namespace
}  // namespace braid
