#include "kernels/core/tensor.h"

#include "kernels/core/segments.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(DType, SizesAndNames) {
  const std::vector<std::tuple<DType, int64_t, std::string, bool>> expected = {
      {DType::kF64, 8, "F64", true}, {DType::kF32, 4, "F32", true},  {DType::kBF16, 2, "BF16", true},
      {DType::kF16, 2, "F16", true}, {DType::kI64, 8, "I64", false}, {DType::kI32, 4, "I32", false},
      {DType::kU8, 1, "U8", false}};
  for (const auto& [dtype, bytes, name, floating] : expected) {
    EXPECT_EQ(size_of(dtype), bytes) << name;
    EXPECT_EQ(name_of(dtype), name);
    EXPECT_EQ(is_float(dtype), floating) << name;
  }
}

TEST(Shape, CountsItsElements) {
  EXPECT_EQ((Shape{2, 3, 4}).numel(), 24);
  EXPECT_EQ((Shape{2, 0, 4}).numel(), 0);
  EXPECT_EQ((Shape{}).numel(), 0);
  EXPECT_EQ((Shape{2, 3}).to_string(), "(2, 3)");
  EXPECT_EQ((Shape{}).to_string(), "()");
  EXPECT_EQ((Shape{1 << 20, 1 << 20}).numel(), int64_t{1} << 40);
}

TEST(Shape, ComparesRankAndExtents) {
  Shape grown = {2};
  grown.append(3);
  EXPECT_EQ(grown, (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2}) == (Shape{2, 0}));
}

TEST(Shape, HasAtMostFourAxes) {
  Shape full = {1, 2, 3, 4};
  EXPECT_EQ(message_of([&] { full.append(5); }), "a tensor has at most 4 axes");
  EXPECT_EQ(message_of([] { Shape{1, 2, 3, 4, 5}; }), "a tensor has at most 4 axes, not 5");
}

TEST(Tensor, IsAViewOfMemory) {
  std::vector<float> memory = {0, 1, 2, 3, 4, 5};
  Tensor t = Tensor::of(memory.data(), {2, 3});
  EXPECT_EQ(t.dtype(), DType::kF32);
  EXPECT_EQ(t.dim(0), 2);
  EXPECT_EQ(t.dim(-1), 3);
  EXPECT_EQ(t.bytes(), 24);
  Tensor copy = t;
  copy.data<float>()[4] = 40;
  EXPECT_EQ(memory[4], 40);
  EXPECT_FALSE(Tensor().defined());
}

TEST(Tensor, ViewsTheSameElementsUnderAnotherShape) {
  Tensor t = tensor_of<int32_t>({0, 1, 2, 3, 4, 5}, {2, 3});
  Tensor view = t.view({3, 1, 2});
  EXPECT_EQ(view.raw(), t.raw());
  EXPECT_EQ(view.shape(), (Shape{3, 1, 2}));
  EXPECT_EQ(view.dtype(), DType::kI32);
  EXPECT_EQ(message_of([&] { t.view({4}); }), "cannot view (2, 3) as (4)");
  EXPECT_THROW(t.view({4}), ShapeError);
}

TEST(Tensor, SlicesRows) {
  Tensor t = tensor_of<double>({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {3, 2, 2});
  Tensor rows = t.rows(1, 3);
  EXPECT_EQ(rows.shape(), (Shape{2, 2, 2}));
  EXPECT_EQ(rows.data<double>()[0], 4);
  EXPECT_EQ(t.rows(3, 3).numel(), 0);
  EXPECT_EQ(message_of([&] { t.rows(1, 4); }), "rows [1, 4) are outside a tensor of shape (3, 2, 2)");
  EXPECT_THROW(t.rows(2, 1), ShapeError);
  EXPECT_THROW(t.rows(-1, 1), ShapeError);
  EXPECT_THROW(Tensor().rows(0, 0), ShapeError);
}

TEST(CheckShapes, NamesTheFirstWrongTensor) {
  Tensor a = zeros_f64({2, 3}), b = zeros_f64({3});
  EXPECT_NO_THROW(check_shapes({{"a", a, {2, 3}}, {"b", b, {3}}}));
  EXPECT_EQ(message_of([&] { check_shapes({{"a", a, {2, 3}}, {"b", b, {2}}}); }), "b: expected shape (2), got (3)");
  EXPECT_THROW(check_shapes({{"a", a, {2, 3, 1}}}), ShapeError);
}

TEST(CheckDtype, NamesTheFirstWrongTensor) {
  Tensor a = zeros_f64({2}), b = zeros({2}, DType::kF32);
  EXPECT_NO_THROW(check_dtype(DType::kF64, {{"a", a}}));
  EXPECT_EQ(message_of([&] { check_dtype(DType::kF64, {{"a", a}, {"b", b}}); }), "b: expected dtype F64, got F32");
  EXPECT_THROW(check_dtype(DType::kF64, {{"b", b}}), DTypeError);
}

TEST(Error, CarriesItsExitCode) {
  try {
    check<DataError>(false, "shard ", 3, ": token ", int64_t{70000}, " is too large");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kData);
    EXPECT_STREQ(e.what(), "shard 3: token 70000 is too large");
  }
  EXPECT_NO_THROW(check<DataError>(true, "fine"));
  EXPECT_EQ(concat(0.1), "0.10000000000000001");  // a value that can be typed back
}

TEST(Segments, DescribesRowsAndDocuments) {
  const Segments rows = Segments::whole_rows(2, 3);
  EXPECT_EQ(rows.offsets, (std::vector<int64_t>{0, 3, 6}));
  EXPECT_EQ(rows.num_tokens(), 6);
  EXPECT_EQ(rows.num_documents(), 2);
  Segments packed = Segments::packed({4, 1, 2});
  EXPECT_EQ(packed.offsets, (std::vector<int64_t>{0, 4, 5, 7}));
  EXPECT_EQ(packed.num_rows, 1);
  EXPECT_EQ(packed.row_tokens, 7);
  EXPECT_EQ(packed.begin(2), 5);
  EXPECT_EQ(packed.end(2), 7);
  EXPECT_EQ(packed.length(0), 4);
  EXPECT_EQ(packed.num_valid(), 7);
  packed.valid[3] = 0;
  EXPECT_EQ(packed.num_valid(), 6);
}

}  // namespace
}  // namespace braid
