#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cases/operator_case.h"

namespace braid::cases {

// Every operator, once, in the order of a step: X(op) is op_case() of kernels/cases/op.cpp.
// clang-format off
#define BRAID_OPERATORS(X) \
  X(matmul) X(copy) X(random) X(embedding) X(rms_norm) X(mtp_inputs) X(gdn_inputs) \
  X(gated_delta_rule) X(gated_rms_norm) X(attention_inputs) X(attention) X(router) X(load_balance) \
  X(expert_rows) X(experts) X(swiglu) X(lm_head_loss) X(split_weights) X(adamw) X(muon) \
  X(sum_squares) X(largest_magnitude)
// clang-format on

#define BRAID_DECLARE(op) OperatorCase op##_case();
#define BRAID_LIST(op) op##_case(),
BRAID_OPERATORS(BRAID_DECLARE)

const std::vector<OperatorCase>& operator_cases() {
  static const std::vector<OperatorCase> cases = {BRAID_OPERATORS(BRAID_LIST)};
  return cases;
}

const OperatorCase& operator_case(const std::string& name) {
  for (const OperatorCase& c : operator_cases())
    if (c.name == name) return c;
  throw ShapeError("there is no operator " + name);
}

std::vector<std::string> operator_names() {
  std::vector<std::string> names;
  for (const OperatorCase& c : operator_cases())
    if (c.implementation) names.push_back(c.name);
  return names;
}

std::vector<std::string> step_names(const Variants& variants) {
  Context cpu = Context::cpu();
  std::vector<std::string> names;
  for (const Variant& variant : variants) {
    Trial trial = Trial::listed(cpu, DType::kF32);
    variant.declare(trial);
    for (const Trial::Step& step : trial.steps())
      if (std::find(names.begin(), names.end(), step.op) == names.end()) names.push_back(step.op);
  }
  return names;
}

Segments packed_documents() { return Segments::packed({1, 1, 70, 3, 129}); }

Segments rows_with_invalid_tokens() {
  Segments segments = Segments::whole_rows(3, 68);
  for (int64_t n = 0; n < segments.num_tokens(); ++n) segments.valid[n] = n % 7 != 3 && n < 2 * 68;
  return segments;
}

Segments with_invalid_tokens(int64_t num_rows, int64_t row_tokens) {
  if (row_tokens == 0) return {num_rows, 0, {0}, {}};
  Segments segments = Segments::whole_rows(num_rows, row_tokens);
  for (int64_t n = 0; n < segments.num_tokens(); ++n) segments.valid[n] = n % 7 != 3;
  if (num_rows > 1) std::fill_n(segments.valid.begin() + row_tokens, row_tokens, 0);
  return segments;
}

Segments going_on(Segments rows, std::vector<int64_t> before, std::vector<int64_t> behind) {
  rows.tokens_before = std::move(before);
  rows.tokens_behind = std::move(behind);
  return rows;
}

Segments halves_of_documents(int64_t num_rows, int64_t row_tokens) {
  std::vector<int64_t> before, behind;
  for (int64_t row = 0; row < num_rows; ++row) {
    before.push_back(row % 2 == 0 ? 0 : row_tokens);
    behind.push_back(row % 2 == 0 ? row_tokens : 0);
  }
  return going_on(Segments::whole_rows(num_rows, row_tokens), before, behind);
}

Segments whole_rows(const Sizes& s) { return Segments::whole_rows(s.rows, s.row_tokens); }
std::string rows_name(const Sizes& s) { return concat(s.rows, " x ", s.row_tokens); }

Segments equal_documents(int64_t num_tokens, int64_t tokens_each) {
  return Segments::packed(std::vector<int64_t>(static_cast<size_t>(num_tokens / tokens_each), tokens_each));
}

namespace {
// Every row from documents of these lengths, in turns; what does not fit is cut.
Segments filled_with(Segments s, const std::vector<int64_t>& lengths) {
  s.offsets = {0};
  for (size_t row = 0, d = 0; row < size_t(s.num_rows); ++row)
    for (int64_t left = s.row_tokens; left > 0; ++d) {
      const int64_t length = std::min(left, lengths[d % lengths.size()]);
      s.offsets.push_back(s.offsets.back() + length);
      left -= length;
    }
  return s;
}
}  // namespace

Segments mixed_documents(const Sizes& sizes) {
  return filled_with(whole_rows(sizes), {700, 90, 2300, 400, 1500, 30, 1100, 250, 3000, 800});
}

Segments uneven_documents(int64_t num_tokens) {
  std::vector<int64_t> lengths = {20000, 100, 5000, 700, 2500, 150, 1500, 300, 1200, 900, 318};
  for (int64_t& length : lengths) length = std::max<int64_t>(1, length * num_tokens / 32768);
  return filled_with(Segments::whole_rows(1, num_tokens), lengths);
}

void unit_rows(Tensor x) {
  const int64_t width = x.dim(-1);
  for (int64_t row = 0; row < x.numel() / width; ++row) {
    double *begin = x.data<double>() + row * width, sum_sq = 0;
    for (int64_t c = 0; c < width; ++c) sum_sq += begin[c] * begin[c];
    for (int64_t c = 0; c < width; ++c) begin[c] /= std::sqrt(sum_sq);
  }
}

std::function<void(Tensor)> nan_from_row(int64_t row) {
  return [row](Tensor x) {
    if (x.numel() == 0) return;
    const int64_t width = x.numel() / x.dim(0);
    std::fill(x.data<double>() + row * width, x.data<double>() + x.numel(), std::numeric_limits<double>::quiet_NaN());
  };
}

std::function<void(Tensor)> with_values(std::vector<double> values) {
  return [values = std::move(values)](Tensor x) { std::copy(values.begin(), values.end(), x.data<double>()); };
}

}  // namespace braid::cases
