#pragma once

#include <functional>
#include <vector>

#include "tests/parallel/mpi_testing.h"

namespace braid::testing {

// Calls that every communicator refuses with the same words before anything moves. tensor(shape, dtype) gives memory of
// the device that `c` is tried on.
inline void expect_refusals(Context& ctx, Communicator& c, const std::function<Tensor(Shape, DType)>& tensor) {
  const int W = c.size(), rank = c.rank();
  const DType f64 = DType::kF64;
  const Tensor full = tensor({W, 3}, f64);
  Tensor shard = tensor({3}, f64), wrong = tensor({5}, f64);
  Tensor f32 = tensor({3}, DType::kF32), bf16 = tensor({3}, DType::kBF16);
  const std::string wrong_shard =
      concat("shard: expected (", W, ", 3) / ", W, " elements, a rank's part of full, got (5)");
  EXPECT_EQ(message_of<ShapeError>([&] { c.reduce_scatter(ctx, wrong, full, ReduceOp::kSum); }), wrong_shard);
  EXPECT_EQ(message_of<ShapeError>([&] { c.all_gather(ctx, full, wrong); }), wrong_shard);
  EXPECT_EQ(message_of<DTypeError>([&] { c.all_gather(ctx, full, f32); }), "shard: expected dtype F64, got F32");
  EXPECT_EQ(message_of<DTypeError>([&] { c.reduce_scatter(ctx, f32, full, ReduceOp::kSum); }),
            "shard: expected dtype F64, got F32");
  EXPECT_EQ(message_of<DTypeError>([&] { c.all_reduce(ctx, bf16, ReduceOp::kSum); }),
            "in_out: expected F64, F32, I64, I32 or U8, got BF16");
  EXPECT_EQ(message_of<DTypeError>([&] {
              c.reduce_scatter(ctx, bf16, tensor({W, 3}, DType::kBF16), ReduceOp::kSum);
            }),
            "full: expected F64, F32, I64, I32 or U8, got BF16");

  const Device own = full.device(), other = own == Device::kCpu ? Device::kCuda : Device::kCpu;
  auto elsewhere = [&](Shape shape) { return Tensor(nullptr, f64, shape, other); };
  const std::string divided = concat("lies on the ", name_of(other), ", ");
  const std::string wrong_device = concat("shard: ", divided, "full on the ", name_of(own));
  EXPECT_EQ(message_of<ShapeError>([&] { c.all_gather(ctx, full, elsewhere({3})); }), wrong_device);
  EXPECT_EQ(message_of<ShapeError>([&] { c.reduce_scatter(ctx, elsewhere({3}), full, ReduceOp::kSum); }), wrong_device);

  std::vector<int64_t> one_each(W, 1), too_many = one_each, negative = one_each, one_more = one_each;
  too_many.push_back(0);
  negative[0] = -1;
  ++one_more[rank];
  Tensor recv = tensor({W, 3}, f64), narrow = tensor({W, 2}, f64), fewer = tensor({W - 1, 3}, f64);
  Tensor more = tensor({W + 1, 3}, f64);
  auto exchange = [&](const Tensor& to, const std::vector<int64_t>& recv_rows, const Tensor& from,
                      const std::vector<int64_t>& send_rows) {
    return message_of<ShapeError>([&] { c.all_to_all_rows(ctx, to, recv_rows, from, send_rows); });
  };
  EXPECT_EQ(exchange(recv, too_many, full, one_each),
            concat("recv_rows: expected ", W, " counts, one for each rank, got ", W + 1));
  EXPECT_EQ(exchange(recv, one_each, full, negative), "send_rows: a count is -1");
  EXPECT_EQ(exchange(recv, one_each, fewer, one_each),
            concat("send: expected ", W, " rows, the sum of send_rows, got shape (", W - 1, ", 3)"));
  EXPECT_EQ(exchange(narrow, one_each, full, one_each),
            concat("recv: expected rows as in send (", W, ", 3), got (", W, ", 2)"));
  EXPECT_EQ(exchange(elsewhere({W, 3}), one_each, full, one_each),
            concat("recv: ", divided, "send on the ", name_of(own)));
  EXPECT_EQ(exchange(more, one_more, full, one_each),
            concat("recv: rank ", rank, " expects 2 rows from itself, but sends itself 1"));
  EXPECT_EQ(message_of<CommunicationError>([&] { c.broadcast(ctx, shard, W); }),
            concat("broadcast: root ", W, " is not one of ", W, " ranks"));
}

}  // namespace braid::testing
