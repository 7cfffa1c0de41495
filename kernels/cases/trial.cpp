#include "kernels/cases/trial.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "kernels/core/copy.h"
#include "kernels/core/float_types.h"
#include "kernels/core/memory.h"
#include "kernels/random.h"
#include "kernels/split_weights.h"

namespace braid::cases {
namespace {

constexpr uint64_t kSeed = 1;

void fill(Context& ctx, Tensor x, const Values& values, uint64_t stream) {
  switch (values.kind) {
    case Values::Kind::kNormal: return fill_normal(ctx, x, values.a, values.b, kSeed, stream, 0);
    case Values::Kind::kUniform: return fill_uniform(ctx, x, values.a, values.b, kSeed, stream, 0);
    case Values::Kind::kConstant: std::fill_n(x.data<double>(), x.numel(), values.a);
  }
}

std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

// `actual` may have more elements, which belong to spare rows.
std::string difference(const Trial::Slot& slot, const Tensor& actual, const Tensor& expected,
                       const Tolerance& allowed) {
  const std::string name = slot.name;
  const int64_t count = expected.numel();
  const bool exact = !is_float(expected.dtype());
  auto element = [&](int64_t i) { return concat("element ", i, " of ", name, " is "); };
  double sum_sq_error = 0, sum_sq = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double a = number_at(actual, i), e = number_at(expected, i);
    if (exact && a != e) return concat(element(i), int64_t(a), ", on the CPU ", int64_t(e));
    if (std::isnan(a)) return element(i) + "not a number";
    if (std::isinf(a) != std::isinf(e)) return concat(element(i), short_text(a), ", on the CPU ", short_text(e));
    if (std::isnan(e)) return concat("element ", i, " of ", name, " is not a number on the CPU");
    sum_sq_error += (a - e) * (a - e);
    sum_sq += e * e;
  }
  for (int64_t i = count; i < actual.numel() && slot.role == Trial::Role::kOutput && !exact; ++i)
    if (!std::isnan(number_at(actual, i))) return element(i) + "written, but belongs to no row in use";
  if (exact || count == 0) return "";
  const double rms = std::sqrt(sum_sq / double(count)), rms_error = std::sqrt(sum_sq_error / double(count));
  if (!(rms_error <= allowed.relative_rms * rms + allowed.absolute))
    return concat(name, " differs from the CPU by ", short_text(rms_error / std::max(rms, 1e-300)),
                  " relative RMS (allowed ", short_text(allowed.relative_rms), ")");
  for (int64_t i = 0; i < count; ++i) {
    const double a = number_at(actual, i), e = number_at(expected, i);
    if (!(std::fabs(a - e) <= allowed.worst * rms + allowed.of_element * std::fabs(e) + allowed.absolute))
      return concat(element(i), short_text(a), ", on the CPU ", short_text(e));
  }
  return "";
}

}  // namespace

DType Trial::device_dtype(Storage storage) const {
  switch (storage) {
    case Storage::kActivation: return activation_;
    case Storage::kWide: return wide_dtype(activation_);
    case Storage::kBf16: return dtypes_of_ == Device::kCuda ? DType::kBF16 : wide_dtype(activation_);
    case Storage::kF64: return DType::kF64;
    case Storage::kI64: return DType::kI64;
    case Storage::kI32: return DType::kI32;
  }
  return activation_;
}

DType Trial::stored(Storage storage) const {
  const DType dtype = device_dtype(storage);
  return kind_ == Kind::kReference && is_float(dtype) ? DType::kF64 : dtype;
}

Tensor Trial::take(Device device, Shape shape, DType dtype) const {
  if (kind_ == Kind::kListed) return Tensor(nullptr, dtype, shape, device);
  const int64_t bytes = shape.numel() * size_of(dtype);
  memory_.push_back(allocate_memory(device, std::max<int64_t>(1, bytes)));
  check<OutOfMemoryError>(memory_.back() != nullptr, "no ", name_of(device), " memory for a tensor of ", bytes,
                          " bytes");
  return Tensor(memory_.back().get(), dtype, shape, device);
}

Tensor Trial::to_device(const Tensor& host) const {
  Tensor t = take(ctx_->device(), host.shape(), host.dtype());
  copy(*ctx_, t, host);
  return t;
}

Tensor Trial::made(Shape shape, const Values& values, Storage storage) {
  const uint64_t stream = next_stream_++;
  const DType dtype = stored(storage);
  if (kind_ == Kind::kListed) return take(ctx_->device(), shape, dtype);
  if (kind_ == Kind::kTimed && !values.edit && values.kind != Values::Kind::kConstant && dtype != DType::kF64) {
    Tensor t = take(ctx_->device(), shape, dtype);
    fill(*ctx_, t, values, stream);
    return t;
  }
  const size_t kept = memory_.size();
  Context cpu = Context::cpu();
  Tensor f64 = take(Device::kCpu, shape, DType::kF64), rounded = take(Device::kCpu, shape, device_dtype(storage));
  fill(cpu, f64, values, stream);
  if (values.edit) values.edit(f64);
  convert(rounded, f64);
  if (kind_ == Kind::kReference) convert(f64, rounded);
  const Tensor t = to_device(kind_ == Kind::kReference ? f64 : rounded);
  memory_.erase(memory_.begin() + std::ptrdiff_t(kept), memory_.end() - 1);  // what was only on the way
  return t;
}

Var Trial::add(const char* name, Role role, const Closeness& close, Tensor tensor, Tensor start) {
  slots_.push_back({name, role, close, tensor, start});
  Var var;
  static_cast<Tensor&>(var) = tensor;
  var.index = static_cast<int>(slots_.size()) - 1;
  return var;
}

Var Trial::add_written(const char* name, Role role, const Closeness& close, const Tensor& start) {
  if (kind_ == Kind::kListed || kind_ == Kind::kTimed) return add(name, role, close, start, {});
  Tensor t = take(ctx_->device(), start.shape(), start.dtype());
  copy(*ctx_, t, start);
  return add(name, role, close, t, start);
}

Var Trial::input(const char* name, Shape shape, const Values& values, Storage storage) {
  return add(name, Role::kInput, kExact, made(shape, values, storage), {});
}

Var Trial::add_raw(const char* name, const Tensor& host) {
  const bool listed = kind_ == Kind::kListed;
  return add(name, Role::kInput, kExact, listed ? take(ctx_->device(), host.shape(), host.dtype()) : to_device(host),
             {});
}
Var Trial::input(const char* name, Shape shape, const std::vector<int64_t>& values) {
  return add_raw(name, Tensor::of(const_cast<int64_t*>(values.data()), shape));
}
Var Trial::input(const char* name, Shape shape, const std::vector<int32_t>& values) {
  return add_raw(name, Tensor::of(const_cast<int32_t*>(values.data()), shape));
}
Var Trial::input(const char* name, Shape shape, const std::vector<double>& values) {
  return add_raw(name, Tensor::of(const_cast<double*>(values.data()), shape));
}

Segments Trial::segments(Segments segments) {
  if (!on_cuda()) return segments;
  Segments::Tables tables;
  Planner plan;
  Segments::plan_tables(plan, tables, segments.num_tokens());
  for (const auto& entry : plan.entries()) *entry.slot = take(Device::kCuda, entry.slot->shape(), entry.slot->dtype());
  if (kind_ != Kind::kListed) segments.upload(*ctx_, tables);
  return segments;
}

Var Trial::output(const char* name, Shape shape, Storage storage, const Closeness& close) {
  const DType dtype = stored(storage);
  if (kind_ == Kind::kListed || kind_ == Kind::kTimed)
    return add_written(name, Role::kOutput, close, take(ctx_->device(), shape, dtype));
  std::vector<std::byte> bytes(static_cast<size_t>(shape.numel() * size_of(dtype)), std::byte{0xff});
  return add_written(name, Role::kOutput, close, to_device(Tensor(bytes.data(), dtype, shape)));
}

Var Trial::sum(const char* name, Shape shape, Storage storage, const Closeness& close, const Values& start) {
  return add_written(name, Role::kSum, close, made(shape, start, storage));
}

Var Trial::part(const char* name, Shape shape, Storage storage, const Closeness& close) {
  return add_written(name, Role::kPart, close, made(shape, normal(), storage));
}

Var Trial::in_out(const char* name, Shape shape, const Values& values, Storage storage, const Closeness& close) {
  return add_written(name, Role::kInOut, close, made(shape, values, storage));
}

Var Trial::in_out(const char* name, const Var& source, const Closeness& close) {
  Tensor start = take(ctx_->device(), source.shape(), source.dtype());
  if (kind_ != Kind::kListed) copy(*ctx_, start, source);
  return add_written(name, Role::kInOut, close, start);
}

Var Trial::low_bits(const char* name, const Var& weight) {
  if (weight.dtype() != DType::kBF16) return add(name, Role::kInOut, kExact, {}, {});
  Tensor start = take(ctx_->device(), shape_of_low_bits(weight.shape()), DType::kU8);
  if (kind_ != Kind::kListed) fill_zero(*ctx_, start);
  return add_written(name, Role::kInOut, kExact, start);
}

Var Trial::kept_bytes(const char* name, Shape shape) {
  Tensor start = take(ctx_->device(), shape, DType::kU8);
  if (kind_ != Kind::kListed) fill_zero(*ctx_, start);
  return add_written(name, Role::kInOut, kExact, start);
}

void Trial::forward(const char* op, std::vector<Var> writes, Body body, Work work) {
  steps_.push_back({op, std::move(writes), std::move(body), std::move(work), true});
}
void Trial::backward(const char* op, std::vector<Var> writes, Body body, Work work) {
  steps_.push_back({op, std::move(writes), std::move(body), std::move(work), false});
}

const Trial::Slot& Trial::slot(const std::string& name) const {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.name == name; });
  check<ShapeError>(found != slots_.end(), "the case has no tensor ", name);
  return *found;
}

int64_t Trial::bytes() const {
  int64_t sum = 0;
  for (const Slot& slot : slots_) sum += slot.tensor.bytes() + slot.start.bytes();
  return sum;
}

void Trial::reset(const Step& step, Starts starts) {
  for (const Var& var : step.writes) {
    Slot& slot = slots_[static_cast<size_t>(var.index)];
    const bool adds = slot.role == Role::kSum || slot.role == Role::kPart;
    if (starts == Starts::kZero && adds) fill_zero(*ctx_, slot.tensor);
    else if (slot.start.defined()) copy(*ctx_, slot.tensor, slot.start);
  }
}

void Trial::run(const Step& step, Starts starts) {
  reset(step, starts);
  step.body(*ctx_);
}

void Trial::run(Starts starts) {
  for (const Step& step : steps_) run(step, starts);
}

std::vector<Tensor> Trial::written() const {
  std::vector<Tensor> tensors;
  for (const Slot& slot : slots_)
    if (slot.role != Role::kInput) tensors.push_back(slot.tensor);
  return tensors;
}

Tensor Trial::on_host(const Tensor& tensor) const {
  Tensor host = take(Device::kCpu, tensor.shape(), tensor.dtype());
  copy(*ctx_, host, tensor);
  return host;
}

Tensor Trial::on_host_f64(const Tensor& tensor) const {
  const Tensor host = on_host(tensor);
  if (!is_float(tensor.dtype()) || tensor.dtype() == DType::kF64) return host;
  Tensor f64 = take(Device::kCpu, tensor.shape(), DType::kF64);
  convert(f64, host);
  return f64;
}

std::vector<std::string> compare_step(Trial& reference, Trial& tried, size_t index, const Allowed& allowed) {
  const Trial::Step &expected_step = reference.steps().at(index), &step = tried.steps().at(index);
  reference.run(expected_step);
  tried.run(step);
  std::vector<std::string> differences;
  for (size_t i = 0; i < step.writes.size(); ++i) {
    const Trial::Slot& slot = tried.slot(step.writes[i]);
    Tensor expected = reference.slot(expected_step.writes[i]).tensor;
    const Tensor actual = tried.on_host_f64(slot.tensor);
    if (slot.close.rounded_once) {
      std::vector<std::byte> bytes(static_cast<size_t>(expected.numel() * size_of(slot.tensor.dtype())));
      const Tensor rounded(bytes.data(), slot.tensor.dtype(), expected.shape());
      convert(rounded, expected);
      convert(expected, rounded);
    }
    std::string what = difference(slot, actual, expected, allowed(slot, expected.numel()));
    if (!what.empty()) differences.push_back(std::move(what));
    if (expected.numel() > 0 && reference.takes_over())
      std::memcpy(expected.raw(), actual.raw(), static_cast<size_t>(expected.bytes()));
  }
  return differences;
}

}  // namespace braid::cases
