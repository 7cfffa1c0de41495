#include "parallel/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "kernels/core/process_info.h"
#include "kernels/core/profile.h"
#include "kernels/cuda/gpu.h"
#include "parallel/communicator_checks.h"
#include "parallel/failpoint.h"
#include "parallel/rank_text.h"

namespace braid {
namespace {

// After an error what a stream waits for may never come, and freeing device memory would wait with it. So the exception
// does not leave: std::terminate, where the program says what it is, ends the process before any destructor.
void check_nccl(ncclResult_t result, const char* operation) noexcept {
  check<CommunicationError>(result == ncclSuccess || result == ncclInProgress, operation, ": ",
                            ncclGetErrorString(result), "; ", ncclGetLastError(nullptr));
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::kF64: return ncclFloat64;
    case DType::kF32: return ncclFloat32;
    case DType::kBF16: return ncclBfloat16;
    case DType::kF16: return ncclFloat16;
    case DType::kI64: return ncclInt64;
    case DType::kI32: return ncclInt32;
    case DType::kU8: return ncclUint8;
  }
  return ncclUint8;
}

ncclRedOp_t nccl_op(ReduceOp op) { return op == ReduceOp::kSum ? ncclSum : ncclMax; }

bool on_gpu(const Tensor& tensor) { return tensor.device() == Device::kCuda; }

// Host and bus address of a rank's GPU.
std::string name_of_gpu(const cuda::Gpu& gpu) {
  char bus[32] = "";
  cuda::check_cuda(cudaDeviceGetPCIBusId(bus, sizeof bus, gpu.device_index), "cudaDeviceGetPCIBusId");
  return concat(bus, " of ", host_name());
}

void check_one_rank_per_gpu(Context& ctx, Communicator& host) {
  Context cpu = Context::cpu();
  const std::vector<std::string> names = gather_text(cpu, host, name_of_gpu(ctx.gpu()));
  for (size_t a = 0; a < names.size(); ++a)
    for (size_t b = a + 1; b < names.size(); ++b)
      check<EnvironmentError>(names[a] != names[b], "ranks ", a, " and ", b, " both use GPU ", names[a],
                              "; start one rank per GPU");
}

bool names_of_hosts_agree(Communicator& host) {
  Context cpu = Context::cpu();
  const std::vector<std::string> names = gather_text(cpu, host, host_name());
  return std::all_of(names.begin(), names.end(), [&](const std::string& name) { return name == names.front(); });
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Context& ctx, std::unique_ptr<Communicator> host) : ctx_(ctx), host_(std::move(host)) {
    ncclUniqueId id;
    if (host_->rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    host_->broadcast(cpu_, Tensor(&id, DType::kU8, {int64_t{sizeof id}}), 0);
    check_nccl(ncclCommInitRank(&comm_, host_->size(), id, host_->rank()), "ncclCommInitRank");
    one_host_ = names_of_hosts_agree(*host_);
    auto& health_checks = *ctx.gpu().health_checks;
    health_check_ = health_checks.insert(health_checks.end(), [comm = comm_] {
      ncclResult_t state = ncclSuccess;
      check_nccl(ncclCommGetAsyncError(comm, &state), "ncclCommGetAsyncError");
      check_nccl(state, "NCCL");
    });
  }
  ~NcclCommunicator() override {
    ctx_.gpu().health_checks->erase(health_check_);
    ncclCommAbort(comm_);  // ends what is in flight; after an orderly end there is nothing
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void all_reduce(Context& ctx, Tensor in_out, ReduceOp op) override {
    if (ctx.counts_only()) return;  // NCCL takes its memory at the start
    if (!on_gpu(in_out)) return host_->all_reduce(cpu_, in_out, op);
    check_reducible("in_out", in_out, op);
    const OperatorScope scope(ctx, "all_reduce");
    if (fault_point("nccl.all_reduce").kind == FaultKind::kAbort) check_nccl(leave(), "ncclAllReduce");
    check_nccl(ncclAllReduce(in_out.raw(), in_out.raw(), in_out.numel(), nccl_type(in_out.dtype()), nccl_op(op), comm_,
                             cuda::stream_of(ctx)),
               "ncclAllReduce");
  }

  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    if (ctx.counts_only()) return;
    if (!on_gpu(full)) return host_->reduce_scatter(cpu_, shard, full, op);
    check_shards(full, shard, size());
    check_reducible("full", full, op);
    const OperatorScope scope(ctx, "reduce_scatter");
    check_nccl(ncclReduceScatter(full.raw(), shard.raw(), shard.numel(), nccl_type(full.dtype()), nccl_op(op), comm_,
                                 cuda::stream_of(ctx)),
               "ncclReduceScatter");
  }

  void all_gather(Context& ctx, Tensor full, const Tensor& shard) override {
    if (ctx.counts_only()) return;
    if (!on_gpu(full)) return host_->all_gather(cpu_, full, shard);
    check_shards(full, shard, size());
    const OperatorScope scope(ctx, "all_gather");
    check_nccl(ncclAllGather(shard.raw(), full.raw(), shard.bytes(), ncclUint8, comm_, cuda::stream_of(ctx)),
               "ncclAllGather");
  }

  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    if (ctx.counts_only()) return;
    if (!on_gpu(send)) return host_->all_to_all_rows(cpu_, recv, recv_rows, send, send_rows);
    check_row_counts(recv, recv_rows, send, send_rows, *this);
    const OperatorScope scope(ctx, "all_to_all_rows");
    const int64_t bytes = row_bytes(send);
    auto* to = static_cast<std::byte*>(recv.raw());
    const auto* from = static_cast<const std::byte*>(send.raw());
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < size(); ++r) {
      check_nccl(ncclSend(from, send_rows[r] * bytes, ncclUint8, r, comm_, cuda::stream_of(ctx)), "ncclSend");
      check_nccl(ncclRecv(to, recv_rows[r] * bytes, ncclUint8, r, comm_, cuda::stream_of(ctx)), "ncclRecv");
      from += send_rows[r] * bytes;
      to += recv_rows[r] * bytes;
    }
    check_nccl(ncclGroupEnd(), "all_to_all_rows");
  }

  void broadcast(Context& ctx, Tensor in_out, int root) override {
    if (ctx.counts_only()) return;
    if (!on_gpu(in_out)) return host_->broadcast(cpu_, in_out, root);
    check_root(root, size());
    const OperatorScope scope(ctx, "broadcast");
    check_nccl(ncclBroadcast(in_out.raw(), in_out.raw(), in_out.bytes(), ncclUint8, root, comm_, cuda::stream_of(ctx)),
               "ncclBroadcast");
  }

  void barrier(Context& ctx) override {
    if (!ctx.counts_only()) host_->barrier(cpu_);
  }

  bool gpus_of_one_host() const override { return one_host_; }

  std::unique_ptr<Communicator> split(int color) override {
    return std::make_unique<NcclCommunicator>(ctx_, host_->split(color));
  }

 private:
  // A failure on purpose: the others wait for this rank for ever, unless NCCL tells them. An abort waits for whatever
  // else the GPU does.
  ncclResult_t leave() {
    cuda::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    ncclCommAbort(comm_);
    return ncclSystemError;
  }

  Context& ctx_;
  std::unique_ptr<Communicator> host_;  // takes host memory, whichever context it is given with
  Context cpu_ = Context::cpu();
  ncclComm_t comm_ = nullptr;
  bool one_host_ = false;
  std::list<std::function<void()>>::iterator health_check_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Context& ctx, std::unique_ptr<Communicator> host) {
  check_one_rank_per_gpu(ctx, *host);
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);  // reductions inside the switch (multicast) only for those who ask
  return std::make_unique<NcclCommunicator>(ctx, std::move(host));
}

}  // namespace braid
