#include "kernels/core/copy.h"
#include "parallel/communicator.h"
#include "parallel/communicator_checks.h"

namespace braid {
namespace {

void copy_unless_same(Context& ctx, Tensor to, const Tensor& from) {
  if (to.raw() != from.raw()) copy(ctx, to, from);
}

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  void all_reduce(Context&, Tensor in_out, ReduceOp op) override { check_reducible("in_out", in_out, op); }

  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    check_shards(full, shard, 1);
    check_reducible("full", full, op);
    copy_unless_same(ctx, shard, full);
  }

  void all_gather(Context& ctx, Tensor full, const Tensor& shard) override {
    check_shards(full, shard, 1);
    copy_unless_same(ctx, full, shard);
  }

  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    check_row_counts(recv, recv_rows, send, send_rows, *this);
    copy_unless_same(ctx, recv, send);
  }

  void broadcast(Context&, Tensor, int root) override { check_root(root, 1); }
  void barrier(Context&) override {}

  std::unique_ptr<Communicator> split(int) override { return make_local_communicator(); }
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() { return std::make_unique<LocalCommunicator>(); }

}  // namespace braid
