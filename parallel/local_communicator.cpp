#include <cstring>

#include "parallel/communicator.h"
#include "parallel/communicator_checks.h"

namespace braid {
namespace {

void copy(Tensor to, const Tensor& from) {
  if (to.raw() != from.raw() && from.bytes() > 0) std::memcpy(to.raw(), from.raw(), from.bytes());
}

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void all_reduce(Context&, Tensor in_out, ReduceOp) override { check_reducible("in_out", in_out); }

  void reduce_scatter(Context&, Tensor shard, const Tensor& full, ReduceOp) override {
    check_shards(full, shard, 1);
    check_reducible("full", full);
    copy(shard, full);
  }

  void all_gather(Context&, Tensor full, const Tensor& shard) override {
    check_shards(full, shard, 1);
    copy(full, shard);
  }

  void all_to_all_rows(Context&, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    check_row_counts(recv, recv_rows, send, send_rows, 1);
    check<ShapeError>(recv_rows[0] == send_rows[0], "recv: ", recv_rows[0], " rows, but this only rank sends itself ",
                      send_rows[0]);
    copy(recv, send);
  }

  void broadcast(Context&, Tensor, int root) override { check_root(root, 1); }
  void barrier(Context&) override {}

  std::unique_ptr<Communicator> split(int) override { return make_local_communicator(); }
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() { return std::make_unique<LocalCommunicator>(); }

}  // namespace braid
