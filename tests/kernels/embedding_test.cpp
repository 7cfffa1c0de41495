#include "kernels/embedding.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// Ids of N tokens: few distinct ones, in no order, every ninth without one.
Tensor some_ids(int64_t N, int64_t V) {
  Tensor ids = zeros({N}, DType::kI64);
  for (int64_t n = 0; n < N; ++n) ids.data<int64_t>()[n] = n % 9 == 4 ? -1 : n * n % V;
  return ids;
}

TEST(Embedding, GathersRows) {
  Context ctx = Context::cpu();
  Tensor table = tensor_of<float>({0, 1, 10, 11, 20, 21}, {3, 2}), ids = tensor_of<int64_t>({2, -1, 0, 2}, {4});
  Tensor y = poisoned({4, 2}, DType::kF32);
  embedding_forward(ctx, y, ids, table);
  expect_same_bits(y, tensor_of<float>({20, 21, 0, 0, 0, 1, 20, 21}, {4, 2}));
}

TEST(Embedding, BackwardAddsRowsToTheirIds) {
  Context ctx = Context::cpu();
  Tensor d_table = tensor_of<float>({100, 200, 300, 400, 500, 600}, {3, 2});
  Tensor d_y = tensor_of<float>({1, 2, 3, 4, 5, 6, 7, 8}, {4, 2}), ids = tensor_of<int64_t>({2, -1, 0, 2}, {4});
  embedding_backward(ctx, d_table, d_y, ids);
  expect_same_bits(d_table, tensor_of<float>({105, 206, 300, 400, 508, 610}, {3, 2}));
}

TEST(Embedding, BackwardAddsInTokenOrder) {
  Context ctx = Context::cpu();
  const int64_t N = 500, V = 7, C = 5;
  Tensor d_y = random_normal({N, C}, DType::kF32, 1), ids = some_ids(N, V);
  Tensor d_table = random_normal({V, C}, DType::kF32, 2), expected = copy_of(d_table);
  for (int64_t n = 0; n < N; ++n) {
    const int64_t id = ids.data<int64_t>()[n];
    for (int64_t c = 0; id >= 0 && c < C; ++c) expected.data<float>()[id * C + c] += d_y.data<float>()[n * C + c];
  }
  embedding_backward(ctx, d_table, d_y, ids);
  expect_same_bits(d_table, expected);
}

TEST(Embedding, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor table = zeros_f64({6, 3}), y = zeros_f64({5, 3}), ids = zeros({5}, DType::kI64);
  Tensor few_ids = zeros({4}, DType::kI64), short_ids = zeros({5}, DType::kI32), table_f32 = zeros({6, 3}, DType::kF32);
  EXPECT_EQ(message_of([&] { embedding_forward(ctx, y, few_ids, table); }), "ids: expected shape (5), got (4)");
  EXPECT_EQ(message_of([&] {
              embedding_forward(ctx, y, ids, zeros_f64({6, 4}));
            }),
            "table: expected shape (6, 3), got (6, 4)");
  EXPECT_EQ(message_of([&] {
              embedding_forward(ctx, zeros_f64({5, 3, 1}), ids, table);
            }),
            "y: expected shape (5, 3), got (5, 3, 1)");
  EXPECT_EQ(message_of([&] { embedding_forward(ctx, y, short_ids, table); }), "ids: expected dtype I64, got I32");
  EXPECT_EQ(message_of([&] { embedding_forward(ctx, y, ids, table_f32); }), "table: expected dtype F64, got F32");
  EXPECT_EQ(message_of([&] {
              embedding_backward(ctx, zeros_f64({6, 2}), y, ids);
            }),
            "d_table: expected shape (6, 3), got (6, 2)");
  EXPECT_EQ(message_of([&] { embedding_backward(ctx, table_f32, y, ids); }), "d_table: expected dtype F64, got F32");
}

}  // namespace
}  // namespace braid
