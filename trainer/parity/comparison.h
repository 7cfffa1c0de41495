#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"
#include "trainer/config/config.h"

namespace braid {

// How far a tensor lies from its reference: sums in fp64 over all elements, which come in blocks. A number that is not
// finite in `got` makes every measure NaN or infinite, so no bound holds.
struct Distance {
  double difference_squares = 0, got_squares = 0, expected_squares = 0, products = 0;
  int64_t count = 0;
  int64_t worst = -1;  // index of the element with the largest |got - expected|
  double worst_got = 0, worst_expected = 0;

  // Elements [first, first + expected.numel()) of the tensor;  got: F32 or F64, expected: F32.
  void add(const Tensor& got, const Tensor& expected, int64_t first);

  // sqrt(sum (got - expected)^2 / sum expected^2); 0 if both are zero everywhere.
  double relative_rms() const;
  // sum got expected / sqrt(sum got^2 sum expected^2); 1 if both are zero everywhere, 0 if one is.
  double cosine() const;
  // sqrt(mean expected^2)
  double expected_rms() const;
};

// What a tensor must meet: relative_rms() <= relative_rms and cosine() >= cosine; an infinite bound always holds.
struct DistanceBound {
  double relative_rms, cosine;
};

// All bounds of `braid parity`.
struct ParityBounds {
  DistanceBound logits, gradients;
  double loss;           // relative difference
  double curves;         // largest relative difference of losses and gradient norms over a training
  double zero_gradient;  // see judge_gradient
};
// fp32 and fp64: relative RMS error within `rtol`, which is 1e-4 if not given. bf16 has bounds of its own: logits
// within 3 units in the last place of their RMS, loss 1e-3, cosine of gradients 0.999. Errors: ConfigError for bf16
// with an rtol, or an rtol that is not positive and finite.
ParityBounds parity_bounds(Precision precision, std::optional<double> rtol);

struct TensorVerdict {
  std::string name;
  double relative_rms = 0, cosine = 0;
  std::vector<int64_t> worst_index;
  double worst_got = 0, worst_expected = 0;
  DistanceBound bound;
  bool passed = false;
};
TensorVerdict judge(const std::string& name, const std::vector<int64_t>& shape, const Distance& distance,
                    const DistanceBound& bound);

// As judge, but an RMS error within bounds.zero_gradient times `largest_rms`, the largest RMS of any reference
// gradient, is rounding and passes: some gradients are zero but for that (of an expert without tokens, of a router
// whose choice has weight 1 whatever it computes), others are what is left of larger terms that cancel. The error is
// then given relative to largest_rms, and no cosine is asked for.
TensorVerdict judge_gradient(const std::string& name, const std::vector<int64_t>& shape, const Distance& distance,
                             double largest_rms, const ParityBounds& bounds);

// A loss, or a curve over steps, and the step (0 = first) with the largest |got - expected| / |expected|.
struct CurveVerdict {
  std::string name;
  std::vector<double> got, expected;
  double largest_difference = 0;
  int64_t worst = 0;
  double bound = 0;
  bool passed = false;
};
CurveVerdict judge_curve(const std::string& name, std::vector<double> got, std::vector<double> expected, double bound);

}  // namespace braid
