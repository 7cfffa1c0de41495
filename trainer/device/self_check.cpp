#include "trainer/device/self_check.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/core/copy.h"
#include "kernels/core/float_types.h"
#include "kernels/core/memory.h"
#include "kernels/random.h"
#include "parallel/rank_text.h"

namespace braid {
namespace {

constexpr const char* kGoOn = "; --skip-selfcheck goes on all the same";
constexpr double kWorstElement = 30;
constexpr double kOwnRounding = 4;  // units in the last place of an element

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

// What the name of a tensor and the numbers of its first difference say, or nothing.
std::string difference(const CheckSide::Result& actual, const CheckSide::Result& expected, DType activation) {
  const size_t count = expected.values.size();
  double sum_sq_error = 0, sum_sq = 0;
  for (size_t i = 0; i < count; ++i) {
    const double a = actual.values[i], e = expected.values[i];
    if (expected.exact && a != e)
      return concat("element ", i, " of ", actual.tensor_name, " is ", int64_t(a), ", on the CPU ", int64_t(e));
    if (std::isnan(a)) return concat("element ", i, " of ", actual.tensor_name, " is not a number");
    sum_sq_error += (a - e) * (a - e);
    sum_sq += e * e;
  }
  if (expected.exact) return "";
  const double rms = std::sqrt(sum_sq / double(count)), allowed = allowed_relative_rms(activation);
  const double error = std::sqrt(sum_sq_error / std::max(sum_sq, 1e-300));
  if (sum_sq_error > 0 && !(error <= allowed))
    return concat(actual.tensor_name, " differs from the CPU by ", short_text(error), " relative RMS (allowed ",
                  short_text(allowed), ")");
  const double own = kOwnRounding * (activation == DType::kBF16 ? 0x1p-8 : 0x1p-23);
  for (size_t i = 0; i < count; ++i) {
    const double a = actual.values[i], e = expected.values[i];
    if (!(std::fabs(a - e) <= kWorstElement * allowed * rms + own * std::fabs(e)))
      return concat("element ", i, " of ", actual.tensor_name, " is ", short_text(a), ", on the CPU ", short_text(e));
  }
  return "";
}

}  // namespace

Tensor CheckSide::take(Device device, Shape shape, DType dtype) {
  const int64_t bytes = std::max<int64_t>(1, shape.numel() * size_of(dtype));
  memory_.push_back(allocate_memory(device, bytes));
  check<OutOfMemoryError>(memory_.back() != nullptr, "no memory for ", bytes, " bytes");
  return Tensor(memory_.back().get(), dtype, shape, device);
}

Tensor CheckSide::normal(Shape shape, double stddev, double mean) {
  Context cpu = Context::cpu();
  Tensor x = take(Device::kCpu, shape, DType::kF64);
  fill_normal(cpu, x, mean, stddev, 1, next_stream_++, 0);
  return x;
}

Tensor CheckSide::uniform(Shape shape, double low, double high) {
  Context cpu = Context::cpu();
  Tensor x = take(Device::kCpu, shape, DType::kF64);
  fill_uniform(cpu, x, low, high, 1, next_stream_++, 0);
  return x;
}

Tensor CheckSide::input(Tensor host_f64, Storage storage) {
  Tensor rounded = take(Device::kCpu, host_f64.shape(), device_dtype(storage));
  convert(rounded, host_f64);
  if (!is_reference_) return input(rounded);
  convert(host_f64, rounded);
  return host_f64;
}

Tensor CheckSide::input(const Tensor& host) {
  Tensor x = take(ctx_.device(), host.shape(), host.dtype());
  copy(ctx_, x, host);
  return x;
}

Segments CheckSide::input(Segments segments) {
  if (!on_cuda()) return segments;
  const int64_t N = segments.num_tokens();
  segments.upload(ctx_, {take(Device::kCuda, {N + 1}, DType::kI32), take(Device::kCuda, {N}, DType::kI32),
                         take(Device::kCuda, {N}, DType::kU8), take(Device::kCuda, {N + 1}, DType::kI32),
                         take(Device::kCuda, {N + 1}, DType::kI32)});
  return segments;
}

Tensor CheckSide::unwritten(Shape shape, DType dtype) {
  Tensor host = take(Device::kCpu, shape, dtype);
  std::memset(host.raw(), 0xff, static_cast<size_t>(host.bytes()));
  return on_cuda() ? input(host) : host;
}

Tensor CheckSide::filled(Shape shape, Storage storage, double value) {
  Tensor host = take(Device::kCpu, shape, DType::kF64);
  std::fill_n(host.data<double>(), host.numel(), value);
  return input(host, storage);
}

void CheckSide::result(const char* op, const char* tensor_name, const Tensor& tensor) {
  Tensor host = tensor;
  if (on_cuda()) {
    host = take(Device::kCpu, tensor.shape(), tensor.dtype());
    copy(ctx_, host, tensor);
  }
  Result result = {op, tensor_name, !is_float(tensor.dtype()), std::vector<double>(size_t(tensor.numel()))};
  const Tensor& read = host;
  for (int64_t i = 0; result.exact && i < read.numel(); ++i)
    result.values[i] = double(read.dtype() == DType::kI64 ? read.data<int64_t>()[i] : read.data<int32_t>()[i]);
  if (!result.exact) convert(Tensor::of(result.values.data(), tensor.shape()), read);
  results_.push_back(std::move(result));
}

double allowed_relative_rms(DType activation) {
  // The tests hold bf16 to 6e-3 and fp32 to 5e-6, but fp32 to 1e-4 where strong decays add up.
  return activation == DType::kBF16 ? 2e-2 : 2e-4;
}

void run_check(const OperatorCheck& check, Context& device, DType activation) {
  const std::string of_variant = " (" + check.variant + "): ";
  Context cpu = Context::cpu();
  CheckSide reference = CheckSide::of_reference(cpu, activation), tried = CheckSide::of_device(device, activation);
  check.run(reference);
  try {
    check.run(tried);
    device.synchronize();
  } catch (const Error& e) {
    throw Error(e.code(), concat("self-check: ", check.name, of_variant, e.what(), kGoOn));
  }
  for (size_t i = 0; i < reference.results().size(); ++i) {
    const CheckSide::Result& result = tried.results().at(i);
    const std::string what = difference(result, reference.results()[i], activation);
    if (!what.empty()) throw EnvironmentError(concat("self-check: ", result.op, of_variant, what, kGoOn));
  }
}

int64_t self_check(Context& ctx, Communicator& world, const RunConfig& config) {
  if (!ctx.on_cuda()) return 0;
  const std::vector<OperatorCheck> checks = operator_checks(config);
  all_or_none(ctx, world, [&] {
    for (const OperatorCheck& check : checks) run_check(check, ctx, dtype_of_precision(config.precision));
    return std::string();
  });
  return static_cast<int64_t>(checks.size());
}

}  // namespace braid
