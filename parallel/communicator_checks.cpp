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

}  // namespace

void check_reducible(const char* name, const Tensor& tensor) {
  check<DTypeError>(size_of(tensor.dtype()) != 2, name, ": expected F64, F32, I64, I32 or U8, got ",
                    name_of(tensor.dtype()));
}

void check_shards(const Tensor& full, const Tensor& shard, int num_ranks) {
  check<ShapeError>(full.numel() == shard.numel() * num_ranks, "shard: expected ", full.shape().to_string(), " / ",
                    num_ranks, " elements, a rank's part of full, got ", shard.shape().to_string());
  check_dtype(full.dtype(), {{"shard", shard}});
}

void check_row_counts(const Tensor& recv, std::span<const int64_t> recv_rows, const Tensor& send,
                      std::span<const int64_t> send_rows, int num_ranks) {
  check_counts("recv_rows", recv_rows, "recv", recv, num_ranks);
  check_counts("send_rows", send_rows, "send", send, num_ranks);
  check_dtype(send.dtype(), {{"recv", recv}});
  check<ShapeError>(row_elements(recv) == row_elements(send), "recv: expected rows as in send ",
                    send.shape().to_string(), ", got ", recv.shape().to_string());
}

void check_root(int root, int num_ranks) {
  check<CommunicationError>(root >= 0 && root < num_ranks, "broadcast: root ", root, " is not one of ", num_ranks,
                            " ranks");
}

int64_t row_bytes(const Tensor& tensor) { return row_elements(tensor) * size_of(tensor.dtype()); }

}  // namespace braid
