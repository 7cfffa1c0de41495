#include "parallel/communicator.h"
#include "parallel/reduction_scratch.h"

namespace braid {
namespace {

class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(int size, PlannedRanks ranks) : size_(size), ranks_(ranks) {}
  int rank() const override { return 0; }
  int size() const override { return size_; }

  void all_reduce(Context& ctx, Tensor in_out, ReduceOp) override {
    count(ctx, all_reduce_scratch_bytes(size_, in_out.numel(), size_of(in_out.dtype())));
  }
  void reduce_scatter(Context& ctx, Tensor shard, const Tensor&, ReduceOp) override {
    count(ctx, reduction_scratch_bytes(size_, shard.bytes()));
  }
  void all_gather(Context& ctx, Tensor, const Tensor&) override { count(ctx, 0); }
  void all_to_all_rows(Context& ctx, Tensor, std::span<const int64_t>, const Tensor&,
                       std::span<const int64_t>) override {
    count(ctx, 0);
  }
  void broadcast(Context& ctx, Tensor, int) override { count(ctx, 0); }
  void barrier(Context& ctx) override { count(ctx, 0); }
  bool gpus_of_one_host() const override { return ranks_ == PlannedRanks::kGpusOfOneHost; }
  std::unique_ptr<Communicator> split(int) override { throw CommunicationError("a plan has no ranks to split"); }

 private:
  void count(Context& ctx, int64_t bytes) const {
    check<CommunicationError>(ctx.counts_only(), "a plan moves no data");
    if (size_ > 1 && !ctx.on_cuda()) Scratch(ctx).tensor({bytes}, DType::kU8);  // NCCL takes its memory at the start
  }
  int size_;
  PlannedRanks ranks_;
};

}  // namespace

std::unique_ptr<Communicator> make_planned_communicator(int size, PlannedRanks ranks) {
  return std::make_unique<PlannedCommunicator>(size, ranks);
}

}  // namespace braid
