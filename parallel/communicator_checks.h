#pragma once

#include <span>

#include "parallel/communicator.h"

namespace braid {

// What every Communicator checks before it moves data, so that all of them refuse the same calls with the same words.
// Errors: ShapeError, DTypeError, naming the tensor.
void check_reducible(const char* name, const Tensor& tensor, ReduceOp op);
void check_shards(const Tensor& full, const Tensor& shard, int num_ranks);
void check_row_counts(const Tensor& recv, std::span<const int64_t> recv_rows, const Tensor& send,
                      std::span<const int64_t> send_rows, const Communicator& group);
void check_root(int root, int num_ranks);  // CommunicationError

// Bytes of everything behind the first axis.
int64_t row_bytes(const Tensor& tensor);

}  // namespace braid
