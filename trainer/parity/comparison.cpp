#include "trainer/parity/comparison.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace braid {
namespace {

constexpr double kDefaultTolerance = 1e-4;
constexpr double kNoBound = std::numeric_limits<double>::infinity();

// Errors of single elements average out in a loss, and a cosine is off by the square of the error.
constexpr double kFinerShare = 1e-2;

// Is a the worse of two errors? NaN is the worst.
bool is_worse(double a, double b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

template <class T>
void add_elements(Distance& sums, const T* got, const float* expected, int64_t count, int64_t first) {
  double worst = sums.worst < 0 ? -1 : std::abs(sums.worst_got - sums.worst_expected);
  for (int64_t i = 0; i < count; ++i) {
    const double g = got[i], e = expected[i], error = std::abs(g - e);
    sums.difference_squares += error * error;
    sums.got_squares += g * g;
    sums.expected_squares += e * e;
    sums.products += g * e;
    if (is_worse(error, worst)) {
      worst = error;
      sums.worst = first + i;
      sums.worst_got = g;
      sums.worst_expected = e;
    }
  }
  sums.count += count;
}

// Where in a tensor of this shape the element lies that has this index in row-major order.
std::vector<int64_t> coordinates(const std::vector<int64_t>& shape, int64_t index) {
  std::vector<int64_t> at(shape.size());
  for (size_t axis = shape.size(); axis-- > 0; index /= shape[axis]) at[axis] = index % shape[axis];
  return at;
}

}  // namespace

void Distance::add(const Tensor& got, const Tensor& expected, int64_t first) {
  const int64_t n = expected.numel();
  check<ShapeError>(got.numel() == n, "distance: got has ", got.numel(), " elements, expected has ", n);
  if (got.dtype() == DType::kF64) add_elements(*this, got.data<double>(), expected.data<float>(), n, first);
  else add_elements(*this, got.data<float>(), expected.data<float>(), n, first);
}

double Distance::relative_rms() const {
  if (difference_squares == 0) return 0;
  return std::sqrt(difference_squares / expected_squares);
}

double Distance::cosine() const {
  if (got_squares == 0 && expected_squares == 0) return 1;
  if (got_squares == 0 || expected_squares == 0) return 0;
  return products / std::sqrt(got_squares) / std::sqrt(expected_squares);
}

double Distance::expected_rms() const { return count > 0 ? std::sqrt(expected_squares / double(count)) : 0; }

ParityBounds parity_bounds(Precision precision, std::optional<double> rtol) {
  if (precision == Precision::kBf16) {
    check<ConfigError>(!rtol.has_value(), "--rtol is for fp32 and fp64; bf16 has bounds of its own");
    return {.logits = {3 * 0x1p-8, -kNoBound},
            .gradients = {kNoBound, 0.999},
            .loss = 1e-3,
            .curves = 1e-3,
            .zero_gradient = 1e-4};
  }
  const double R = rtol.value_or(kDefaultTolerance);
  check<ConfigError>(R > 0 && std::isfinite(R), "--rtol is ", R, ", expected a positive number");
  const DistanceBound elements = {R, 1 - kFinerShare * R};
  return {.logits = elements, .gradients = elements, .loss = kFinerShare * R, .curves = R, .zero_gradient = 1e-6};
}

TensorVerdict judge(const std::string& name, const std::vector<int64_t>& shape, const Distance& distance,
                    const DistanceBound& bound) {
  TensorVerdict verdict{.name = name,
                        .relative_rms = distance.relative_rms(),
                        .cosine = distance.cosine(),
                        .worst_index = coordinates(shape, std::max<int64_t>(distance.worst, 0)),
                        .worst_got = distance.worst_got,
                        .worst_expected = distance.worst_expected,
                        .bound = bound};
  verdict.passed = verdict.relative_rms <= bound.relative_rms && verdict.cosine >= bound.cosine;  // false for NaN
  return verdict;
}

TensorVerdict judge_gradient(const std::string& name, const std::vector<int64_t>& shape, const Distance& distance,
                             double largest_rms, const ParityBounds& bounds) {
  TensorVerdict verdict = judge(name, shape, distance, bounds.gradients);
  const bool is_zero = distance.expected_rms() < bounds.zero_gradient * largest_rms;
  if (verdict.passed && !is_zero) return verdict;
  const double share = std::sqrt(distance.difference_squares / double(distance.count)) / largest_rms;
  if (!is_zero && !(share <= bounds.zero_gradient)) return verdict;
  verdict.relative_rms = share;
  verdict.bound = {bounds.zero_gradient, -kNoBound};
  verdict.passed = share <= bounds.zero_gradient;
  return verdict;
}

CurveVerdict judge_curve(const std::string& name, std::vector<double> got, std::vector<double> expected, double bound) {
  CurveVerdict verdict{.name = name, .bound = bound};
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = got[i] == expected[i] ? 0 : std::abs(got[i] - expected[i]) / std::abs(expected[i]);
    if (!is_worse(difference, verdict.largest_difference)) continue;
    verdict.largest_difference = difference;
    verdict.worst = static_cast<int64_t>(i);
  }
  verdict.got = std::move(got);
  verdict.expected = std::move(expected);
  verdict.passed = verdict.largest_difference <= bound;
  return verdict;
}

}  // namespace braid
