#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <type_traits>

#include "parallel/communicator_checks.h"
#include "parallel/mpi_check.h"
#include "parallel/reduction_scratch.h"

namespace braid {
namespace {

constexpr int64_t kSmallBytes = kSmallReductionBytes, kBlockBytes = kReductionBlockBytes;
constexpr int64_t kTile = 2048;  // elements one thread sums while they stay in the L1 cache
constexpr int kTag = 0;

template <ReduceOp kOp, class T>
T combine(T sum, T value) {
  if constexpr (kOp == ReduceOp::kSum) return static_cast<T>(sum + value);
  // A NaN must not vanish behind a larger number.
  if constexpr (std::is_floating_point_v<T>) return value > sum || value != value ? value : sum;
  return value > sum ? value : sum;
}

// out[i] = parts[0][i] (+) parts[1][i] (+) ..., in this order. out may be one of the parts.
template <ReduceOp kOp, class T, class PartOf>
void reduce_in_order(T* out, int num_parts, int64_t count, PartOf&& part_of) {
  const int64_t num_tiles = (count + kTile - 1) / kTile;
#pragma omp parallel for schedule(static) if (num_tiles > 1)
  for (int64_t tile = 0; tile < num_tiles; ++tile) {
    const int64_t begin = tile * kTile, n = std::min(kTile, count - begin);
    T sum[kTile];
    std::copy_n(part_of(0) + begin, n, sum);
    for (int p = 1; p < num_parts; ++p) {
      const T* part = part_of(p) + begin;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sum[i] = combine<kOp>(sum[i], part[i]);
    }
    std::copy_n(sum, n, out + begin);
  }
}

// part_of(p): the bytes of part p.
template <class PartOf>
void reduce_in_order(DType dtype, ReduceOp op, std::byte* out, int num_parts, int64_t count, PartOf&& part_of) {
  auto reduce_as = [&]<class T> {
    auto typed_part = [&](int p) { return reinterpret_cast<const T*>(part_of(p)); };
    T* typed_out = reinterpret_cast<T*>(out);
    if (op == ReduceOp::kSum) reduce_in_order<ReduceOp::kSum>(typed_out, num_parts, count, typed_part);
    else reduce_in_order<ReduceOp::kMax>(typed_out, num_parts, count, typed_part);
  };
  switch (dtype) {
    case DType::kF64: return reduce_as.template operator()<double>();
    case DType::kF32: return reduce_as.template operator()<float>();
    case DType::kI64: return reduce_as.template operator()<int64_t>();
    case DType::kI32: return reduce_as.template operator()<int32_t>();
    case DType::kU8: return reduce_as.template operator()<uint8_t>();
    case DType::kBF16:
    case DType::kF16: assert(false);  // refused by check_reducible
  }
}

std::byte* bytes_of(Tensor& tensor) { return static_cast<std::byte*>(tensor.raw()); }
const std::byte* bytes_of(const Tensor& tensor) { return static_cast<const std::byte*>(tensor.raw()); }
std::byte* bytes_of(Scratch& scratch, int64_t count) {
  return static_cast<std::byte*>(scratch.tensor({count}, DType::kU8).raw());
}

// MPI moves bytes and nothing else: its own reductions may sum in any order and round differently from run to run.
// Blocking calls only, so after an error no transfer is left that could write into memory we have released.
class MpiCommunicator final : public Communicator {
 public:
  // Owns comm.
  MpiCommunicator(MPI_Comm comm, int64_t piece_bytes)
      : comm_(comm), piece_bytes_(piece_bytes), exceptions_at_start_(std::uncaught_exceptions()) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "new communicator");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "new communicator");
    check_mpi(MPI_Comm_size(comm_, &size_), "new communicator");
  }

  // Freeing is collective: no rank may enter it on the way out of an error that the others know nothing of.
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized && std::uncaught_exceptions() <= exceptions_at_start_) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(Context& ctx, Tensor in_out, ReduceOp op) override {
    check_reducible("in_out", in_out, op);
    const int64_t numel = in_out.numel(), bytes = in_out.bytes();
    std::byte* data = bytes_of(in_out);
    if (bytes <= std::min(kSmallBytes, piece_bytes_)) {
      Scratch scratch(ctx);
      std::byte* parts = bytes_of(scratch, size_ * bytes);
      if (ctx.counts_only()) return;
      gather_small("all_reduce", parts, data, bytes);
      reduce_in_order(in_out.dtype(), op, data, size_, numel, [=](int r) { return parts + r * bytes; });
      return;
    }
    const int64_t shard = (numel + size_ - 1) / size_, element_bytes = size_of(in_out.dtype());
    const int64_t own_begin = std::min(numel, rank_ * shard) * element_bytes;
    reduce_shards(ctx, "all_reduce", op, in_out.dtype(), data + own_begin, data, shard, numel);
    if (ctx.counts_only()) return;
    auto part = [=](int r) {
      const int64_t begin = std::min(numel, r * shard), end = std::min(numel, (r + 1) * shard);
      return std::span(data + begin * element_bytes, (end - begin) * element_bytes);
    };
    exchange(
        "all_reduce", [=, this](int) { return part(rank_); }, part);
  }

  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    check_shards(full, shard, size_);
    check_reducible("full", full, op);
    reduce_shards(ctx, "reduce_scatter", op, full.dtype(), bytes_of(shard), bytes_of(full), shard.numel(),
                  full.numel());
  }

  void all_gather(Context& ctx, Tensor full, const Tensor& shard) override {
    check_shards(full, shard, size_);
    if (ctx.counts_only()) return;
    std::byte* to = bytes_of(full);
    const std::byte* from = bytes_of(shard);
    const int64_t bytes = shard.bytes();
    if (bytes <= std::min(kSmallBytes, piece_bytes_)) return gather_small("all_gather", to, from, bytes);
    exchange(
        "all_gather", [=](int) { return std::span(from, bytes); },
        [=](int r) { return std::span(to + r * bytes, bytes); });
  }

  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    check_row_counts(recv, recv_rows, send, send_rows, *this);
    if (ctx.counts_only()) return;
    const int64_t bytes = row_bytes(send);
    auto rows_of_rank = [bytes](auto* data, std::span<const int64_t> rows, int r) {
      int64_t begin = 0;
      for (int before = 0; before < r; ++before) begin += rows[before];
      return std::span(data + begin * bytes, rows[r] * bytes);
    };
    std::byte* to = bytes_of(recv);
    const std::byte* from = bytes_of(send);
    exchange(
        "all_to_all_rows", [=](int r) { return rows_of_rank(from, send_rows, r); },
        [=](int r) { return rows_of_rank(to, recv_rows, r); });
  }

  void broadcast(Context& ctx, Tensor in_out, int root) override {
    check_root(root, size_);
    if (ctx.counts_only()) return;
    for (int64_t begin = 0; begin < in_out.bytes(); begin += piece_bytes_) {
      const int64_t bytes = std::min(piece_bytes_, in_out.bytes() - begin);
      check_mpi(MPI_Bcast(bytes_of(in_out) + begin, static_cast<int>(bytes), MPI_BYTE, root, comm_), "broadcast");
    }
  }

  void barrier(Context& ctx) override {
    if (!ctx.counts_only()) check_mpi(MPI_Barrier(comm_), "barrier");
  }

  std::unique_ptr<Communicator> split(int color) override {
    MPI_Comm group = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color, rank_, &group), "split");
    return std::make_unique<MpiCommunicator>(group, piece_bytes_);
  }

 private:
  // shard may be this rank's part of full.
  void gather_small(const char* operation, std::byte* full, const std::byte* shard, int64_t bytes) {
    const void* from = shard == full + rank_ * bytes ? MPI_IN_PLACE : shard;
    const int count = static_cast<int>(bytes);
    check_mpi(MPI_Allgather(from, count, MPI_BYTE, full, count, MPI_BYTE, comm_), operation);
  }

  // out[i] = reduction over the ranks of their full[rank * shard + i], for as many of `shard` elements as lie below
  // numel. Block by block, so that scratch does not grow with the tensor. out may be this rank's part of full: that
  // part is sent to nobody.
  void reduce_shards(Context& ctx, const char* operation, ReduceOp op, DType dtype, std::byte* out,
                     const std::byte* full, int64_t shard, int64_t numel) {
    const int64_t element_bytes = size_of(dtype);
    const int64_t block = std::min(kBlockBytes, std::max(piece_bytes_, element_bytes)) / element_bytes;
    Scratch scratch(ctx);
    const int64_t slot_bytes = std::min(block, shard) * element_bytes;
    std::byte* received = bytes_of(scratch, size_ * slot_bytes);
    if (ctx.counts_only()) return;
    for (int64_t first = 0; first < shard; first += block) {
      auto block_of = [=](int r) {
        const int64_t begin = std::min(numel, r * shard + first);
        const int64_t end = std::min(numel, r * shard + std::min(shard, first + block));
        return std::span(full + begin * element_bytes, (end - begin) * element_bytes);
      };
      const auto own = block_of(rank_);
      exchange_with_others(operation, block_of,
                           [=](int r) { return std::span(received + r * slot_bytes, own.size()); });
      const int64_t count = static_cast<int64_t>(own.size()) / element_bytes;
      reduce_in_order(dtype, op, out + first * element_bytes, size_, count,
                      [=, this](int r) { return r == rank_ ? own.data() : received + r * slot_bytes; });
    }
  }

  // Sends the bytes send_to(r) to every rank r and receives recv_from(r) from it.
  template <class SendTo, class RecvFrom>
  void exchange(const char* operation, SendTo&& send_to, RecvFrom&& recv_from) {
    const std::span<const std::byte> from = send_to(rank_);
    const std::span<std::byte> to = recv_from(rank_);
    if (to.data() != from.data() && !from.empty()) std::memcpy(to.data(), from.data(), from.size());
    exchange_with_others(operation, send_to, recv_from);
  }

  // In step s every rank sends to the rank s above it and receives from the rank s below it: all links are busy, and
  // nobody is sent to by two ranks at a time.
  template <class SendTo, class RecvFrom>
  void exchange_with_others(const char* operation, SendTo&& send_to, RecvFrom&& recv_from) {
    for (int step = 1; step < size_; ++step) {
      const int to = (rank_ + step) % size_, from = (rank_ - step + size_) % size_;
      send_and_receive(operation, send_to(to), to, recv_from(from), from);
    }
  }

  // An empty span is sent as an empty message, so that a peer that expects data learns of it.
  void send_and_receive(const char* operation, std::span<const std::byte> send, int to, std::span<std::byte> recv,
                        int from) {
    const int64_t send_pieces = num_pieces(send.size()), recv_pieces = num_pieces(recv.size());
    for (int64_t piece = 0; piece < std::max(send_pieces, recv_pieces); ++piece) {
      const bool sends = piece < send_pieces, receives = piece < recv_pieces;
      const auto out = sends ? piece_of(send, piece) : send.first(0);
      const auto in = receives ? piece_of(recv, piece) : recv.first(0);
      MPI_Status status;
      check_mpi(
          MPI_Sendrecv(out.data(), static_cast<int>(out.size()), MPI_BYTE, sends ? to : MPI_PROC_NULL, kTag, in.data(),
                       static_cast<int>(in.size()), MPI_BYTE, receives ? from : MPI_PROC_NULL, kTag, comm_, &status),
          operation, ", rank ", rank_, " sending ", out.size(), " bytes to rank ", to, " and expecting ", in.size(),
          " bytes from rank ", from);
      if (!receives) continue;
      int received = 0;
      check_mpi(MPI_Get_count(&status, MPI_BYTE, &received), operation);
      check<CommunicationError>(received == static_cast<int>(in.size()), operation, ": rank ", rank_, " expected ",
                                in.size(), " bytes from rank ", from, ", but got ", received);
    }
  }

  int64_t num_pieces(int64_t bytes) const { return std::max(int64_t{1}, (bytes + piece_bytes_ - 1) / piece_bytes_); }
  template <class Byte>
  std::span<Byte> piece_of(std::span<Byte> bytes, int64_t piece) const {
    const int64_t begin = piece * piece_bytes_;
    return bytes.subspan(begin, std::min<int64_t>(piece_bytes_, bytes.size() - begin));
  }

  MPI_Comm comm_;
  int64_t piece_bytes_;
  int exceptions_at_start_;
  int rank_ = 0, size_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(int64_t piece_bytes) {
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "copy of MPI_COMM_WORLD");
  return std::make_unique<MpiCommunicator>(world, piece_bytes);
}

}  // namespace braid
