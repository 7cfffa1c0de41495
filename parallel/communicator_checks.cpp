#include "parallel/communicator_checks.h"

namespace braid {
namespace {

int64_t row_elements(const Tensor& tensor) {
  int64_t product = 1;
  for (int axis = 1; axis < tensor.rank(); ++axis) product *= tensor.dim(axis);
  return product;
}

void check_counts(const char* counts_name, std::span<const int64_t> counts, const char* name, const Tensor& tensor,
                  int num_ranks) {
  check<ShapeError>(static_cast<int64_t>(counts.size()) == num_ranks, counts_name, ": expected ", num_ranks,
                    " counts, one for each rank, got ", counts.size());
  int64_t sum = 0;
  for (int64_t count : counts) {
    check<ShapeError>(count >= 0, counts_name, ": a count is ", count);
    sum += count;
  }
  check<ShapeError>(tensor.rank() > 0 && tensor.dim(0) == sum, name, ": expected ", sum, " rows, the sum of ",
                    counts_name, ", got shape ", tensor.shape().to_string());
}

void check_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  check<ShapeError>(tensor.device() == other.device(), name, ": lies on the ", name_of(tensor.device()), ", ",
                    other_name, " on the ", name_of(other.device()));
}

}  // namespace

void check_reducible(const char* name, const Tensor& tensor, ReduceOp op) {
  check<DTypeError>(size_of(tensor.dtype()) != 2, name, ": expected F64, F32, I64, I32 or U8, got ",
                    name_of(tensor.dtype()));
  // NCCL's largest of a number and a NaN is the number.
  const bool loses_nan = op == ReduceOp::kMax && tensor.device() == Device::kCuda;
  check<DTypeError>(!loses_nan || (tensor.dtype() != DType::kF64 && tensor.dtype() != DType::kF32), name,
                    ": the largest of numbers on GPUs is that of I64, I32 or U8, got ", name_of(tensor.dtype()));
}

void check_shards(const Tensor& full, const Tensor& shard, int num_ranks) {
  check<ShapeError>(full.numel() == shard.numel() * num_ranks, "shard: expected ", full.shape().to_string(), " / ",
                    num_ranks, " elements, a rank's part of full, got ", shard.shape().to_string());
  check_dtype(full.dtype(), {{"shard", shard}});
  check_device("shard", shard, "full", full);
}

void check_row_counts(const Tensor& recv, std::span<const int64_t> recv_rows, const Tensor& send,
                      std::span<const int64_t> send_rows, const Communicator& group) {
  check_counts("recv_rows", recv_rows, "recv", recv, group.size());
  check_counts("send_rows", send_rows, "send", send, group.size());
  check_dtype(send.dtype(), {{"recv", recv}});
  check<ShapeError>(row_elements(recv) == row_elements(send), "recv: expected rows as in send ",
                    send.shape().to_string(), ", got ", recv.shape().to_string());
  check_device("recv", recv, "send", send);
  const int rank = group.rank();
  check<ShapeError>(recv_rows[rank] == send_rows[rank], "recv: rank ", rank, " expects ", recv_rows[rank],
                    " rows from itself, but sends itself ", send_rows[rank]);
}

void check_root(int root, int num_ranks) {
  check<CommunicationError>(root >= 0 && root < num_ranks, "broadcast: root ", root, " is not one of ", num_ranks,
                            " ranks");
}

int64_t row_bytes(const Tensor& tensor) { return row_elements(tensor) * size_of(tensor.dtype()); }

}  // namespace braid
