#include "trainer/report/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace braid {
namespace {

// 0.975 quantile of Student's t with `freedom` degrees of freedom.
double student_t(int64_t freedom) {
  constexpr double kTable[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                               2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                               2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
  const auto n = static_cast<int64_t>(std::size(kTable));
  // Behind the table: the first terms of the expansion around the normal distribution.
  const double z = 1.959964;
  const double z3 = z * z * z, z5 = z3 * z * z, f = double(freedom);
  return freedom <= n ? kTable[freedom - 1] : z + (z3 + z) / (4 * f) + (5 * z5 + 16 * z3 + 3 * z) / (96 * f * f);
}

}  // namespace

Estimate estimate(const std::vector<double>& values) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  Estimate e;
  e.count = static_cast<int64_t>(values.size());
  if (e.count == 0) return {kNaN, kNaN, kNaN, 0};
  for (const double v : values) e.mean += v / double(e.count);
  double squares = 0;
  for (const double v : values) squares += (v - e.mean) * (v - e.mean);
  e.standard_deviation = e.count > 1 ? std::sqrt(squares / double(e.count - 1)) : kNaN;
  e.half_width = e.count > 1 ? student_t(e.count - 1) * e.standard_deviation / std::sqrt(double(e.count)) : kNaN;
  return e;
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

bool same_data_order(const RunData& a, const RunData& b) {
  return !a.data_order.empty() && a.data_order == b.data_order;
}

LossDifference loss_difference(const RunData& base, const RunData& other) {
  LossDifference result;
  result.same_data = same_data_order(base, other);
  std::vector<std::pair<int64_t, double>> differences;  // step, other - base
  for (size_t i = 0, j = 0; i < base.train.size() && j < other.train.size();) {
    const TrainPoint &b = base.train[i], &o = other.train[j];
    if (b.step == o.step && std::isfinite(o.loss - b.loss)) differences.emplace_back(b.step, o.loss - b.loss);
    i += b.step <= o.step;
    j += o.step <= b.step;
  }
  if (differences.empty()) return result;
  differences.erase(differences.begin(), differences.end() - std::max<ptrdiff_t>(1, differences.size() / 4));
  result.first_step = differences.front().first;
  result.last_step = differences.back().first;

  const auto n = static_cast<int64_t>(differences.size()), blocks = std::min(LossDifference::kBlocks, n);
  std::vector<double> means;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * n / blocks, end = (block + 1) * n / blocks;
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += differences[i].second;
    means.push_back(sum / double(end - begin));
  }
  result.difference = estimate(means);
  if (!result.same_data) result.difference.half_width = std::numeric_limits<double>::quiet_NaN();
  return result;
}

std::string to_text(const Estimate& e, int decimals) {
  if (!std::isfinite(e.mean)) return "–";
  if (!std::isfinite(e.half_width)) return fmt::format("{:.{}f}", e.mean, decimals);
  return fmt::format("{:.{}f} ± {:.{}f}", e.mean, decimals, e.half_width, decimals);
}

}  // namespace braid
