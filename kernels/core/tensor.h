#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels/core/error.h"

namespace braid {

enum class DType : uint8_t { kF64, kF32, kBF16, kF16, kI64, kI32, kU8 };
enum class Device : uint8_t { kCpu, kCuda };

int64_t size_of(DType dtype);      // bytes of one element
const char* name_of(DType dtype);  // "F32"; the names safetensors uses
bool is_float(DType dtype);
// What statistics, router outputs, decays, weight gradients and small weights of an operator are stored in when its
// activations are `activation`: fp32 for bf16, else the same.
DType wide_dtype(DType activation);
const char* name_of(Device device);  // "CPU", "GPU"

struct BFloat16;  // kernels/core/float_types.h
struct Float16;

template <class T>
constexpr DType dtype_of() {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, double>) return DType::kF64;
  else if constexpr (std::is_same_v<U, float>) return DType::kF32;
  else if constexpr (std::is_same_v<U, BFloat16>) return DType::kBF16;
  else if constexpr (std::is_same_v<U, Float16>) return DType::kF16;
  else if constexpr (std::is_same_v<U, int64_t>) return DType::kI64;
  else if constexpr (std::is_same_v<U, int32_t>) return DType::kI32;
  else if constexpr (std::is_same_v<U, uint8_t>) return DType::kU8;
  else static_assert(sizeof(U) == 0, "no dtype for this type");
}

// Extents of a tensor, outermost first; at most four.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[axis]; }
  int64_t numel() const;
  std::string to_string() const;  // "(2, 3)"
  void append(int64_t dim);
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// A non-owning, contiguous, row-major view. Only an Arena owns memory; copying a Tensor copies the view.
// Operators take outputs as `Tensor` and inputs as `const Tensor&`, whose data() is read-only.
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape, Device device = Device::kCpu)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}
  template <class T>
  static Tensor of(T* data, Shape shape) {
    return Tensor(data, dtype_of<T>(), shape);
  }

  bool defined() const { return shape_.rank() > 0; }  // has a shape (memory may still be missing)
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int axis) const { return shape_[axis < 0 ? axis + rank() : axis]; }
  int64_t numel() const { return shape_.numel(); }
  int64_t bytes() const { return numel() * size_of(dtype_); }

  template <class T>
  T* data() {
    assert(dtype_of<T>() == dtype_);
    return static_cast<T*>(data_);
  }
  template <class T>
  const T* data() const {
    assert(dtype_of<T>() == dtype_);
    return static_cast<const T*>(data_);
  }
  void* raw() { return data_; }
  const void* raw() const { return data_; }

  // Same elements under another shape with as many of them.
  Tensor view(Shape shape) const;
  // Rows [begin, end) along the first axis.
  Tensor rows(int64_t begin, int64_t end) const;

 private:
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::kF32;
  Device device_ = Device::kCpu;
};

// Operator contracts. Each throws ShapeError or DTypeError that names the tensor, what was expected and what was found.
// All tensors of one check lie on the same device.
struct NamedShape {
  const char* name;
  const Tensor& tensor;
  Shape expected;
};
void check_shapes(std::initializer_list<NamedShape> tensors);

struct NamedDType {
  const char* name;
  const Tensor& tensor;
};
void check_dtype(DType expected, std::initializer_list<NamedDType> tensors);

}  // namespace braid
