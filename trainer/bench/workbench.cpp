#include "trainer/bench/workbench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "kernels/core/memory.h"
#include "kernels/random.h"

namespace braid {
namespace {

constexpr int64_t kPastCacheBytes = int64_t{160} << 20;
constexpr int64_t kHeadStartBytes = int64_t{2} << 30;
// Slow operators get fewer turns.
constexpr double kTurnsMs = 1000;
constexpr int kMinTurns = 7;

}  // namespace

Workbench::Workbench(const Context& ctx, Communicator& world, const OperatorBenchOptions& options, Report report)
    : ctx_(ctx), world_(world), options_(options), report_(std::move(report)) {
  if (ctx_.on_cuda()) head_start_ = empty({kHeadStartBytes}, DType::kU8);
}

int64_t Workbench::row_tokens() const { return std::gcd(num_tokens(), int64_t{4096}); }

Segments Workbench::whole_rows() const { return Segments::whole_rows(num_tokens() / row_tokens(), row_tokens()); }

std::string Workbench::whole_rows_name() const { return concat(num_tokens() / row_tokens(), " x ", row_tokens()); }

std::string Workbench::tokens_by(int64_t width) const { return concat(num_tokens(), " x ", width); }

Segments Workbench::equal_documents(int64_t num_documents, int64_t document_tokens) {
  return Segments::packed(std::vector<int64_t>(static_cast<size_t>(num_documents), document_tokens));
}

Segments Workbench::mixed_documents(int64_t num_rows, int64_t row_tokens) {
  constexpr int64_t kLengths[] = {700, 90, 2300, 400, 1500, 30, 1100, 250, 3000, 800};
  Segments s{num_rows, row_tokens, {0}, std::vector<uint8_t>(static_cast<size_t>(num_rows * row_tokens), 1), {}};
  for (int64_t row = 0, d = 0; row < num_rows; ++row)
    for (int64_t left = row_tokens; left > 0; ++d) {
      const int64_t length = std::min(left, kLengths[d % std::ssize(kLengths)]);
      s.offsets.push_back(s.offsets.back() + length);
      left -= length;
    }
  return s;
}

Segments Workbench::uploaded(Segments segments) {
  if (!ctx_.on_cuda()) return segments;
  const int64_t N = segments.num_tokens();
  segments.upload(ctx_, {empty({N + 1}, DType::kI32), empty({N}, DType::kI32), empty({N}, DType::kU8),
                         empty({N + 1}, DType::kI32), empty({N + 1}, DType::kI32)});
  return segments;
}

Tensor Workbench::empty(Shape shape, DType dtype) {
  const int64_t bytes = shape.numel() * size_of(dtype);
  memory_.push_back(allocate_memory(ctx_.device(), std::max<int64_t>(1, bytes)));
  check<OutOfMemoryError>(memory_.back() != nullptr, "no ", name_of(ctx_.device()), " memory for a tensor of ", bytes,
                          " bytes; --tokens ", num_tokens() / 2, " takes about half");
  return Tensor(memory_.back().get(), dtype, shape, ctx_.device());
}

Tensor Workbench::zeros(Shape shape, DType dtype) {
  Tensor t = empty(shape, dtype);
  fill_zero(ctx_, t);
  return t;
}

Tensor Workbench::normal(Shape shape, DType dtype, double stddev, double mean) {
  Tensor t = empty(shape, dtype);
  fill_normal(ctx_, t, mean, stddev, ++seed_, 0, 0);
  return t;
}

Tensor Workbench::uniform(Shape shape, DType dtype, double low, double high) {
  Tensor t = empty(shape, dtype);
  fill_uniform(ctx_, t, low, high, ++seed_, 0, 0);
  return t;
}

void Workbench::release() {
  ctx_.synchronize();
  memory_.resize(ctx_.on_cuda() ? 1 : 0);  // the first is the head start
}

template <class Make>
Workbench::Tensors Workbench::copies(const Make& make) {
  Tensors result;
  int64_t bytes = 0;
  do {
    result.copies_.push_back(make());
    bytes += result.copies_.back().bytes();
  } while (bytes < kPastCacheBytes && std::ssize(result.copies_) < options_.max_turns);
  return result;
}

Workbench::Tensors Workbench::normals(Shape shape, DType dtype, double stddev) {
  return copies([&] { return normal(shape, dtype, stddev); });
}

Workbench::Tensors Workbench::uniforms(Shape shape, DType dtype, double low, double high) {
  return copies([&] { return uniform(shape, dtype, low, high); });
}

void Workbench::measure(const std::string& op, const std::string& shape, const Work& work, const Body& body,
                        Launch launch) {
  for (const OperatorFamily& family : operator_families())
    for (const char* name : family.ops)
      if (op == name && is_chosen(family, op, options_.ops)) return report_(op, shape, work, median_ms(body, launch));
}

double Workbench::median_ms(const Body& body, Launch launch) {
  body(0);  // takes scratch, chooses algorithms
  ctx_.synchronize();
  const auto start = std::chrono::steady_clock::now();
  body(1);
  ctx_.synchronize();
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  // Of all ranks, so that all take the same number of turns: a collective waits for every rank.
  const double fitting = kTurnsMs / std::max(of_slowest_rank(ms), 1e-3);
  const int turns =
      static_cast<int>(std::clamp<double>(fitting, std::min(kMinTurns, options_.max_turns), options_.max_turns));
  world_.barrier(ctx_);
  std::vector<double> times = turn_times_ms(ctx_, turns, launch, head_start_, body);
  std::nth_element(times.begin(), times.begin() + turns / 2, times.end());
  return of_slowest_rank(times[static_cast<size_t>(turns) / 2]);
}

double Workbench::of_slowest_rank(double ms) {
  Context host = Context::cpu();
  world_.all_reduce(host, Tensor::of(&ms, {1}), ReduceOp::kMax);
  return ms;
}

}  // namespace braid
