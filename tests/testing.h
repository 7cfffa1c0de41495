#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"
#include "kernels/random.h"

namespace braid::testing {

// What the build knows, a path for example, or what the environment variable `name` says where programs have moved.
inline std::string moved(const char* name, const std::string& as_built) {
  const char* value = std::getenv(name);
  return value ? value : as_built;
}

// Tensors of a test live until the process ends; tests are small.
inline Tensor allocate(Shape shape, DType dtype) {
  static std::deque<std::vector<std::byte>> memory;
  memory.emplace_back(shape.numel() * size_of(dtype) + 64);
  auto address = reinterpret_cast<uintptr_t>(memory.back().data());
  return Tensor(reinterpret_cast<void*>((address + 63) / 64 * 64), dtype, shape);
}

inline Tensor zeros(Shape shape, DType dtype) {
  Tensor t = allocate(shape, dtype);
  std::memset(t.raw(), 0, t.bytes());
  return t;
}
inline Tensor zeros_f64(Shape shape) { return zeros(shape, DType::kF64); }

// Filled with NaN: an output that an operator must overwrite whole.
inline Tensor poisoned(Shape shape, DType dtype) {
  Tensor t = allocate(shape, dtype);
  std::memset(t.raw(), 0xff, t.bytes());
  return t;
}

inline Tensor random_normal(Shape shape, DType dtype, uint64_t seed, double stddev = 1.0, double mean = 0.0) {
  Tensor t = allocate(shape, dtype);
  Context ctx = Context::cpu();
  fill_normal(ctx, t, mean, stddev, seed, 0, 0);
  return t;
}
inline Tensor random_f64(Shape shape, uint64_t seed, double stddev = 1.0, double mean = 0.0) {
  return random_normal(shape, DType::kF64, seed, stddev, mean);
}
inline Tensor uniform_f64(Shape shape, double low, double high, uint64_t seed) {
  Tensor t = allocate(shape, DType::kF64);
  Context ctx = Context::cpu();
  fill_uniform(ctx, t, low, high, seed, 0, 0);
  return t;
}

template <class T>
Tensor tensor_of(const std::vector<T>& values, Shape shape) {
  Tensor t = allocate(shape, dtype_of<T>());
  if (t.bytes() > 0) std::memcpy(t.raw(), values.data(), t.bytes());
  return t;
}

inline Tensor copy_of(const Tensor& source) {
  Tensor t = allocate(source.shape(), source.dtype());
  if (t.bytes() > 0) std::memcpy(t.raw(), source.raw(), t.bytes());
  return t;
}

// The same values in another float dtype.
inline Tensor converted(const Tensor& source, DType dtype) {
  Tensor t = allocate(source.shape(), dtype);
  for (int64_t i = 0; i < source.numel(); ++i) {
    const double value = source.dtype() == DType::kF64 ? source.data<double>()[i] : source.data<float>()[i];
    if (dtype == DType::kF64) t.data<double>()[i] = value;
    else t.data<float>()[i] = static_cast<float>(value);
  }
  return t;
}

inline double value_at(const Tensor& t, int64_t i) {
  return t.dtype() == DType::kF64 ? t.data<double>()[i] : t.data<float>()[i];
}

inline double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += value_at(a, i) * value_at(b, i);
  return sum;
}

// sqrt(sum (a - b)^2 / sum b^2)
inline double relative_rms(const Tensor& actual, const Tensor& expected) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const double d = value_at(actual, i) - value_at(expected, i);
    difference += d * d;
    norm += value_at(expected, i) * value_at(expected, i);
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

inline void expect_close(const Tensor& actual, const Tensor& expected, double relative, const char* what = "") {
  ASSERT_EQ(actual.shape(), expected.shape()) << what;
  EXPECT_LE(relative_rms(actual, expected), relative) << what;  // false for NaN
}

inline void expect_same_bits(const Tensor& actual, const Tensor& expected, const char* what = "") {
  ASSERT_EQ(actual.bytes(), expected.bytes()) << what;
  EXPECT_EQ(std::memcmp(actual.raw(), expected.raw(), expected.bytes()), 0) << what;
}

// Central differences of `loss` by every element of `x` (fp64), compared with `gradient`: relative RMS error below
// `tolerance`. `x` is restored.
inline void expect_gradient(const std::function<double()>& loss, Tensor x, const Tensor& gradient,
                            double tolerance = 1e-7, const char* what = "", double step = 1e-4) {
  Tensor numeric = zeros_f64(x.shape());
  for (int64_t i = 0; i < x.numel(); ++i) {
    double& element = x.data<double>()[i];
    const double original = element;
    auto at = [&](double offset) {
      element = original + offset;
      return loss();
    };
    // Fourth order, so that the step can be large and rounding small.
    numeric.data<double>()[i] = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
    element = original;
  }
  EXPECT_LE(relative_rms(gradient, numeric), tolerance) << what;
}

// Runs `body` with each number of OpenMP threads and expects it to return tensors with the same bits.
void expect_same_bits_for_every_thread_count(const std::function<std::vector<Tensor>()>& body);

}  // namespace braid::testing
