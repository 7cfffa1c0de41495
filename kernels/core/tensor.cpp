#include "kernels/core/tensor.h"

namespace braid {

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kU8: return 1;
  }
  return 0;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF64: return "F64";
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kI64: return "I64";
    case DType::kI32: return "I32";
    case DType::kU8: return "U8";
  }
  return "?";
}

bool is_float(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

DType wide_dtype(DType activation) { return activation == DType::kBF16 ? DType::kF32 : activation; }

const char* name_of(Device device) { return device == Device::kCuda ? "GPU" : "CPU"; }

Shape::Shape(std::initializer_list<int64_t> dims) {
  check<ShapeError>(dims.size() <= kMaxRank, "a tensor has at most ", kMaxRank, " axes, not ", dims.size());
  for (int64_t dim : dims) dims_[rank_++] = dim;
}

int64_t Shape::numel() const {
  int64_t product = 1;
  for (int axis = 0; axis < rank_; ++axis) product *= dims_[axis];
  return rank_ == 0 ? 0 : product;
}

std::string Shape::to_string() const {
  std::string text = "(";
  for (int axis = 0; axis < rank_; ++axis) text += (axis ? ", " : "") + std::to_string(dims_[axis]);
  return text + ")";
}

void Shape::append(int64_t dim) {
  check<ShapeError>(rank_ < kMaxRank, "a tensor has at most ", kMaxRank, " axes");
  dims_[rank_++] = dim;
}

Tensor Tensor::view(Shape shape) const {
  check<ShapeError>(shape.numel() == numel(), "cannot view ", shape_.to_string(), " as ", shape.to_string());
  Tensor result = *this;
  result.shape_ = shape;
  return result;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  check<ShapeError>(rank() > 0 && 0 <= begin && begin <= end && end <= dim(0), "rows [", begin, ", ", end,
                    ") are outside a tensor of shape ", shape_.to_string());
  Shape shape = {end - begin};
  int64_t row_elements = 1;
  for (int axis = 1; axis < rank(); ++axis) {
    shape.append(shape_[axis]);
    row_elements *= shape_[axis];
  }
  Tensor result = *this;
  result.shape_ = shape;
  if (data_) result.data_ = static_cast<char*>(data_) + begin * row_elements * size_of(dtype_);
  return result;
}

void check_shapes(std::initializer_list<NamedShape> tensors) {
  const auto& [first_name, first, first_shape] = *tensors.begin();
  for (const auto& [name, tensor, expected] : tensors) {
    if (tensor.shape() != expected)
      throw ShapeError(concat(name, ": expected shape ", expected.to_string(), ", got ", tensor.shape().to_string()));
    if (tensor.raw() && first.raw() && tensor.device() != first.device())  // without memory it lies nowhere
      throw ShapeError(concat(name, ": lies on the ", name_of(tensor.device()), ", ", first_name, " on the ",
                              name_of(first.device())));
  }
}

void check_dtype(DType expected, std::initializer_list<NamedDType> tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype() != expected)
      throw DTypeError(concat(name, ": expected dtype ", name_of(expected), ", got ", name_of(tensor.dtype())));
  }
}

}  // namespace braid
