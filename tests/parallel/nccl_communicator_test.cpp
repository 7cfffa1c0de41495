#include "parallel/nccl_communicator.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/core/float_types.h"
#include "kernels/core/memory.h"
#include "parallel/expert_exchange.h"
#include "parallel/peer_windows.h"
#include "tests/parallel/communicator_contract.h"

namespace braid {
namespace {

using namespace braid::testing;

// One GPU per rank; numbers are small and whole, so that sums are exact in any order, unless order is what is tested.
class NcclCommunicator : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Context::num_gpus() < std::max(1, world().size()))
      GTEST_SKIP() << "there is no GPU here for each of " << world().size() << " ranks";
    if (nccl_) return;
    gpu_ = new Context(Context::gpu(world().rank()));  // never freed: the driver may be gone before us
    nccl_ = make_nccl_communicator(*gpu_, world().split(0)).release();
  }
  static Context& gpu() { return *gpu_; }
  static Communicator& nccl() { return *nccl_; }

  static Tensor empty_on_gpu(Shape shape, DType dtype) {
    static auto* memory = new std::vector<std::shared_ptr<std::byte>>;
    const int64_t bytes = shape.numel() * size_of(dtype);
    memory->push_back(allocate_memory(Device::kCuda, std::max<int64_t>(1, bytes)));
    return Tensor(memory->back().get(), dtype, shape, Device::kCuda);
  }
  static Tensor to_gpu(const Tensor& host) {
    Tensor device = empty_on_gpu(host.shape(), host.dtype());
    copy(gpu(), device, host);
    return device;
  }
  static Tensor poisoned_on_gpu(Shape shape, DType dtype) { return to_gpu(poisoned(shape, dtype)); }
  static Tensor to_cpu(const Tensor& device) {
    Tensor host = allocate(device.shape(), device.dtype());
    copy(gpu(), host, device);
    return host;
  }

 private:
  static inline Context* gpu_ = nullptr;
  static inline Communicator* nccl_ = nullptr;
};

constexpr int64_t kWidth = 64;
constexpr DType kReduced[] = {DType::kF64, DType::kF32, DType::kI64, DType::kI32};
constexpr DType kMoved[] = {DType::kF64, DType::kF32, DType::kBF16, DType::kI64, DType::kI32};
const std::vector<int64_t> kSizes = {0, 1, 3, 1000, 140009};

// Element i of a tensor of whole numbers below 100.
void set(Tensor t, int64_t i, int64_t value) {
  switch (t.dtype()) {
    case DType::kF64: t.data<double>()[i] = double(value); break;
    case DType::kF32: t.data<float>()[i] = float(value); break;
    case DType::kBF16: t.data<BFloat16>()[i] = BFloat16(float(value)); break;
    case DType::kI64: t.data<int64_t>()[i] = value; break;
    default: t.data<int32_t>()[i] = int32_t(value);
  }
}
template <class Value>
Tensor numbers(Shape shape, DType dtype, Value&& value) {
  Tensor t = allocate(shape, dtype);
  for (int64_t i = 0; i < t.numel(); ++i) set(t, i, value(i));
  return t;
}
int64_t of_rank(int rank, int64_t i) { return (rank + 1) * (i % 7 + 1); }
int64_t sum_over(int ranks, int64_t i) { return int64_t{ranks} * (ranks + 1) / 2 * (i % 7 + 1); }

TEST_F(NcclCommunicator, ReducesEveryDType) {
  const int W = nccl().size(), rank = nccl().rank();
  for (const DType dtype : kReduced) {
    for (const int64_t count : kSizes) {
      SCOPED_TRACE(concat(name_of(dtype), " ", count));
      Tensor x = to_gpu(numbers({count}, dtype, [&](int64_t i) { return of_rank(rank, i); }));
      nccl().all_reduce(gpu(), x, ReduceOp::kSum);
      expect_same_bits(to_cpu(x), numbers({count}, dtype, [&](int64_t i) { return sum_over(W, i); }), "sum");

      if (dtype == DType::kI64 || dtype == DType::kI32) {
        x = to_gpu(numbers({count}, dtype, [&](int64_t i) { return 50 - (rank + i) % W; }));
        nccl().all_reduce(gpu(), x, ReduceOp::kMax);
        expect_same_bits(to_cpu(x), numbers({count}, dtype, [](int64_t) { return 50; }), "largest");
      }

      const Tensor full = to_gpu(numbers({W * count}, dtype, [&](int64_t i) { return of_rank(rank, i); }));
      Tensor shard = poisoned_on_gpu({count}, dtype);
      nccl().reduce_scatter(gpu(), shard, full, ReduceOp::kSum);
      expect_same_bits(to_cpu(shard), numbers({count}, dtype, [&](int64_t i) { return sum_over(W, rank * count + i); }),
                       "shard");
    }
  }
}

TEST_F(NcclCommunicator, GathersAndBroadcasts) {
  const int W = nccl().size(), rank = nccl().rank();
  for (const DType dtype : kMoved) {
    for (const int64_t count : kSizes) {
      SCOPED_TRACE(concat(name_of(dtype), " ", count));
      auto shard_of = [&](int r) { return numbers({count}, dtype, [&](int64_t i) { return of_rank(r, i); }); };
      Tensor full = poisoned_on_gpu({W, count}, dtype);
      nccl().all_gather(gpu(), full, to_gpu(shard_of(rank)));
      const Tensor gathered = to_cpu(full);
      for (int r = 0; r < W; ++r) expect_same_bits(gathered.rows(r, r + 1), shard_of(r), "gathered");

      full = poisoned_on_gpu({W, count}, dtype);  // the shard inside
      Tensor own = full.rows(rank, rank + 1);
      if (count > 0) copy(gpu(), Tensor(own.raw(), dtype, {count}, Device::kCuda), shard_of(rank));
      nccl().all_gather(gpu(), full, own);
      expect_same_bits(to_cpu(full), gathered, "in place");

      for (int root = 0; root < W; ++root) {
        Tensor x = to_gpu(shard_of(rank));
        nccl().broadcast(gpu(), x, root);
        expect_same_bits(to_cpu(x), shard_of(root), "broadcast");
      }
    }
  }
}

TEST_F(NcclCommunicator, MovesUnevenRows) {
  const int W = nccl().size(), rank = nccl().rank();
  for (const int64_t width : {1, 6, 2048}) {
    auto num_rows = [](int from, int to) { return int64_t{(from + 2 * to) % 3}; };  // 0, 1 or 2
    std::vector<int64_t> send_rows, recv_rows;
    for (int r = 0; r < W; ++r) {
      send_rows.push_back(num_rows(rank, r));
      recv_rows.push_back(num_rows(r, rank));
    }
    std::vector<int64_t> sent, expected;  // codes of the rows
    for (int r = 0; r < W; ++r) {
      for (int64_t i = 0; i < send_rows[r]; ++i) sent.push_back(20 * rank + 5 * r + i);
      for (int64_t i = 0; i < recv_rows[r]; ++i) expected.push_back(20 * r + 5 * rank + i);
    }
    auto rows_of = [&](const std::vector<int64_t>& codes) {
      return numbers({static_cast<int64_t>(codes.size()), width}, DType::kBF16,
                     [&](int64_t i) { return codes[i / width] + i % width % 8; });
    };
    Tensor recv = poisoned_on_gpu({static_cast<int64_t>(expected.size()), width}, DType::kBF16);
    nccl().all_to_all_rows(gpu(), recv, recv_rows, to_gpu(rows_of(sent)), send_rows);
    expect_same_bits(to_cpu(recv), rows_of(expected));
  }
}

TEST_F(NcclCommunicator, SameBitsEveryTime) {
  const int W = nccl().size(), rank = nccl().rank();
  for (const int64_t count : {1000, 140009, 3000000}) {
    const Tensor noise = to_gpu(random_normal({W * count}, DType::kF32, 100 + rank));
    Tensor first;
    for (int repeat = 0; repeat < 5; ++repeat) {
      Tensor shard = poisoned_on_gpu({count}, DType::kF32);
      nccl().reduce_scatter(gpu(), shard, noise, ReduceOp::kSum);
      if (repeat == 0) first = to_cpu(shard);
      else expect_same_bits(to_cpu(shard), first);
    }
  }
}

TEST_F(NcclCommunicator, HostTensorsTravelToo) {
  Context cpu = Context::cpu();
  const int W = nccl().size();
  Tensor x = tensor_of<int64_t>({nccl().rank() + 1}, {1});
  nccl().all_reduce(gpu(), x, ReduceOp::kSum);  // with the context of the GPU, as a training step does
  EXPECT_EQ(x.data<int64_t>()[0], int64_t{W} * (W + 1) / 2);
  const auto alone = nccl().split(nccl().rank());
  EXPECT_EQ(alone->size(), 1);
  Tensor y = to_gpu(tensor_of<float>({3, 4}, {2}));
  alone->all_reduce(gpu(), y, ReduceOp::kSum);
  expect_same_bits(to_cpu(y), tensor_of<float>({3, 4}, {2}));
}

TEST_F(NcclCommunicator, RefusesTensorsThatDoNotFit) {
  expect_refusals(gpu(), nccl(), [](Shape shape, DType dtype) { return poisoned_on_gpu(shape, dtype); });
  Context cpu = Context::cpu();
  expect_refusals(cpu, nccl(), [](Shape shape, DType dtype) { return zeros(shape, dtype); });
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    Tensor x = poisoned_on_gpu({3}, dtype);
    EXPECT_EQ(message_of<DTypeError>([&] { nccl().all_reduce(gpu(), x, ReduceOp::kMax); }),
              concat("in_out: the largest of numbers on GPUs is that of I64, I32 or U8, got ", name_of(dtype)));
  }
}

TEST_F(NcclCommunicator, TwoRanksOnOneGpuAreRefusedByName) {
  if (world().size() < 2) GTEST_SKIP() << "one rank alone";
  Context first = Context::gpu(0);
  const std::string message = message_of<EnvironmentError>([&] { make_nccl_communicator(first, world().split(0)); });
  EXPECT_TRUE(message.starts_with("ranks 0 and 1 both use GPU ")) << message;
  EXPECT_TRUE(message.ends_with("; start one rank per GPU")) << message;
  Context::gpu(world().rank());  // the thread's current device again
}

// Many transfers, one behind the other without a wait of the host, of which one rank is late with every third: what a
// call brings must not be what an earlier or later one brings.
TEST_F(NcclCommunicator, PeerWindowsBringTheRowsOfEveryCall) {
  const int W = nccl().size(), rank = nccl().rank();
  constexpr int64_t kPlaces = 3000, kCalls = 60;
  const auto windows = open_peer_windows(gpu(), nccl(), W * kPlaces * kWidth * int64_t{sizeof(float)});
  if (!windows) GTEST_SKIP() << "the GPUs here do not write into each other's memory";
  auto num_rows = [](int from, int64_t call) { return (call * 731 + 997 * from) % (kPlaces + 1); };
  auto rows_of = [&](int from, int64_t call, int64_t count) {
    return numbers({count, kWidth}, DType::kF32, [&](int64_t i) { return (i * 7 + from * 31 + call * 13) % 9973; });
  };
  const Tensor late = poisoned_on_gpu({int64_t{1} << 26}, DType::kF32);
  std::vector<Tensor> sent, received;
  for (int64_t call = 0; call < kCalls; ++call) {
    sent.push_back(to_gpu(rows_of(rank, call, call % 2 ? W * kPlaces : num_rows(rank, call))));
    received.push_back(poisoned_on_gpu({W * kPlaces, kWidth}, DType::kF32));
  }
  for (int64_t call = 0; call < kCalls; ++call) {
    if (call % 3 == 0 && call / 3 % W == rank)
      for (int i = 0; i < 20; ++i) fill_zero(gpu(), late);
    const Tensor here =
        call % 2 ? windows->all_to_all(gpu(), sent[call]) : windows->all_gather(gpu(), sent[call], kPlaces);
    windows->wait(gpu());
    copy(gpu(), received[call], here);
  }
  for (int64_t call = 0; call < kCalls; ++call) {
    SCOPED_TRACE(concat("call ", call));
    const Tensor got = to_cpu(received[call]);
    for (int r = 0; r < W; ++r) {
      if (r == rank) continue;
      const int64_t count = call % 2 ? kPlaces : num_rows(r, call);
      Tensor expected = rows_of(r, call, call % 2 ? W * kPlaces : count);
      if (call % 2) expected = expected.rows(rank * kPlaces, (rank + 1) * kPlaces);
      expect_same_bits(got.rows(r * kPlaces, r * kPlaces + count), expected, "rows");
    }
  }
  EXPECT_NE(message_of<ShapeError>([&] { windows->all_gather(gpu(), sent[0], kPlaces + 1000); }).find("has no room"),
            std::string::npos);
}

// An exchange with the memory of one route.
constexpr int64_t kExperts = 8, kPerToken = 3, kTokens = 300;
struct Exchange {
  ExpertExchange exchange;
  ExpertRoute route;
  Arena memory;
  Exchange(Communicator& group, Device device, CopyPlaces places, double max_rows_factor = 0,
           int64_t max_tokens = kTokens)
      : exchange(group, kExperts, kPerToken, max_tokens, max_rows_factor, places) {
    Planner planner;
    exchange.plan_memory(planner, route);
    memory = Arena("a route", planner, device);
  }
};

enum class Routing { kUneven, kAllToTheLastExpert, kNone };

// Uneven: some pairs dropped, an expert without rows.
Tensor expert_ids(int rank, int64_t N, Routing routing = Routing::kUneven) {
  Tensor ids = allocate({N, kPerToken}, DType::kI32);
  if (routing != Routing::kUneven) {
    std::fill_n(ids.data<int32_t>(), ids.numel(), routing == Routing::kNone ? -1 : static_cast<int32_t>(kExperts - 1));
    return ids;
  }
  for (int64_t i = 0; i < ids.numel(); ++i) {
    const int64_t expert = (int64_t{7} * rank + 13 * (i / kPerToken) + 5 * (i % kPerToken) + i * i) % 9 - 1;
    ids.data<int32_t>()[i] = static_cast<int32_t>(expert == 5 ? 2 : expert);
  }
  return ids;
}

// The rows of an exchange between GPUs are those of an exchange over MPI, bit for bit, whatever the way of the copies;
// twice, so that what an earlier call left is seen.
TEST_F(NcclCommunicator, ExpertExchangeGivesTheRowsOfTheCpu) {
  const int rank = world().rank();
  Context cpu = Context::cpu();
  const auto host = world().split(0);
  Exchange on_cpu(*host, Device::kCpu, CopyPlaces::kPacked);
  for (const CopyPlaces places : {CopyPlaces::kPacked, CopyPlaces::kFixed}) {
    Exchange on_gpu(nccl(), Device::kCuda, places);
    for (const auto& [N, routing] : {std::pair{kTokens, Routing::kUneven},
                                     {int64_t{200} + 37 * rank, Routing::kUneven},
                                     {kTokens, Routing::kAllToTheLastExpert},
                                     {int64_t{rank == 0 ? 0 : 100}, Routing::kUneven},
                                     {kTokens, Routing::kNone},
                                     {kTokens, Routing::kUneven}}) {
      SCOPED_TRACE(concat(places == CopyPlaces::kPacked ? "packed, " : "fixed places, ", N, " tokens, routing ",
                          static_cast<int>(routing)));
      const Tensor ids = expert_ids(rank, N, routing), x = random_normal({N, kWidth}, DType::kF32, 1 + rank),
                   gate = random_normal({N, kPerToken}, DType::kF32, 11);
      on_cpu.exchange.plan(cpu, on_cpu.route, ids);
      on_gpu.exchange.plan(gpu(), on_gpu.route, to_gpu(ids));
      expect_same_bits(to_cpu(on_gpu.route.rows_per_expert()), on_cpu.route.rows_per_expert(), "rows_per_expert");
      const int64_t R = on_cpu.route.num_rows, R_gpu = on_gpu.route.num_rows;
      ASSERT_GE(R_gpu, R);

      Tensor rows = poisoned({R, kWidth}, DType::kF32), row_gate = poisoned({R}, DType::kF32);
      Tensor gpu_rows = poisoned_on_gpu({R_gpu, kWidth}, DType::kF32);
      Tensor gpu_row_gate = poisoned_on_gpu({R_gpu}, DType::kF32);
      on_cpu.exchange.dispatch(cpu, rows, x, on_cpu.route);
      on_cpu.exchange.dispatch_gates(cpu, row_gate, gate, on_cpu.route);
      on_gpu.exchange.dispatch(gpu(), gpu_rows, to_gpu(x), on_gpu.route);
      on_gpu.exchange.dispatch_gates(gpu(), gpu_row_gate, to_gpu(gate), on_gpu.route);
      expect_same_bits(to_cpu(gpu_rows.rows(0, R)), rows, "rows");
      expect_same_bits(to_cpu(gpu_row_gate.rows(0, R)), row_gate, "row_gate");

      Tensor y = poisoned({N, kWidth}, DType::kF32), d_gate = poisoned({N, kPerToken}, DType::kF32);
      Tensor gpu_y = poisoned_on_gpu({N, kWidth}, DType::kF32);
      Tensor gpu_d_gate = poisoned_on_gpu({N, kPerToken}, DType::kF32);
      on_cpu.exchange.combine(cpu, y, rows, on_cpu.route);
      on_cpu.exchange.return_gates(cpu, d_gate, row_gate, on_cpu.route);
      on_gpu.exchange.combine(gpu(), gpu_y, gpu_rows, on_gpu.route);
      on_gpu.exchange.return_gates(gpu(), gpu_d_gate, gpu_row_gate, on_gpu.route);
      expect_same_bits(to_cpu(gpu_y), y, "y");
      expect_same_bits(to_cpu(gpu_d_gate), d_gate, "returned gates");
    }
  }
}

// More rows than there is room for: those that fit are written, nothing behind them is, and every rank is told. Done
// again in rounds, the rows are those of an exchange with room for all.
TEST_F(NcclCommunicator, ExpertExchangeMakesRoundsOfTooManyRows) {
  const int rank = world().rank(), ranks = world().size();
  for (const CopyPlaces places : {CopyPlaces::kPacked, CopyPlaces::kFixed}) {
    constexpr int64_t N = 2500;
    Exchange e(nccl(), Device::kCuda, places, 0.5, N), whole(nccl(), Device::kCuda, places, 0, N);
    const int64_t room = e.exchange.max_rows();
    const Tensor ids = expert_ids(rank, N, Routing::kAllToTheLastExpert),
                 x = random_normal({N, kWidth}, DType::kF32, 1);
    e.exchange.plan(gpu(), e.route, to_gpu(ids));
    const int64_t R = e.route.num_rows;
    ASSERT_EQ(R, rank == ranks - 1 || places == CopyPlaces::kFixed ? room : 0);
    Tensor memory = poisoned_on_gpu({R + 1, kWidth}, DType::kF32), rows = memory.rows(0, R);
    Tensor y = poisoned_on_gpu({N, kWidth}, DType::kF32);
    e.exchange.dispatch(gpu(), rows, to_gpu(x), e.route);
    e.exchange.combine(gpu(), y, rows, e.route);
    expect_same_bits(to_cpu(memory.rows(R, R + 1)), poisoned({1, kWidth}, DType::kF32), "behind the rows");
    EXPECT_TRUE(e.exchange.rows_were_cut(gpu()));

    whole.exchange.plan(gpu(), whole.route, to_gpu(ids));
    Tensor all_rows = poisoned_on_gpu({whole.route.num_rows, kWidth}, DType::kF32);
    Tensor all_y = poisoned_on_gpu({N, kWidth}, DType::kF32);
    whole.exchange.dispatch(gpu(), all_rows, to_gpu(x), whole.route);
    whole.exchange.combine(gpu(), all_y, all_rows, whole.route);
    e.exchange.plan(gpu(), e.route, to_gpu(ids));
    ASSERT_TRUE(e.route.in_rounds());
    EXPECT_EQ(e.route.num_rows, rank == ranks - 1 ? N * kPerToken * ranks : 0);
    {
      Scratch scratch(gpu());
      const Tensor sent = to_gpu(x), travelling = e.exchange.start_dispatch(gpu(), scratch, sent, e.route);
      Tensor sums = e.exchange.zero_sums(gpu(), scratch, kWidth, DType::kF32, e.route);
      for (const ExpertRoute::Round& round : e.route.rounds) {
        const ExpertRoute route = e.exchange.round(gpu(), scratch, e.route, round);
        Tensor some = poisoned_on_gpu({round.num_rows, kWidth}, DType::kF32);
        e.exchange.finish_dispatch(gpu(), some, travelling, sent, route);
        expect_same_bits(to_cpu(some), to_cpu(all_rows.rows(round.first_row, round.first_row + round.num_rows)),
                         "rows");
        add_rows(gpu(), sums, some, route.order);
      }
      const Tensor returning = e.exchange.start_combine_sums(gpu(), scratch, sums, DType::kF32, e.route);
      e.exchange.finish_combine(gpu(), y, returning, e.route);
      expect_same_bits(to_cpu(y), to_cpu(all_y), "y");
    }
    EXPECT_FALSE(e.exchange.rows_were_cut(gpu()));
    e.exchange.plan(gpu(), e.route, to_gpu(expert_ids(rank, N, Routing::kNone)));
    EXPECT_FALSE(e.route.in_rounds());  // the next one fits
    EXPECT_FALSE(e.exchange.rows_were_cut(gpu()));
  }
}

// In bf16 the sum of a token's rows on a rank is rounded once before it travels, and so is the sum over the ranks.
TEST_F(NcclCommunicator, ExpertExchangeRoundsEachRanksSumOnce) {
  const int rank = world().rank(), ranks = world().size();
  const int64_t N = 250 + rank, El = kExperts / ranks;
  const Tensor ids = expert_ids(rank, N);
  auto of_expert = [](int64_t expert, int64_t n) {
    return float(BFloat16(0.1f * float(expert + 1) + 0.37f * float(n)));
  };
  Tensor expected = allocate({N, 1}, DType::kBF16);
  for (int64_t n = 0; n < N; ++n) {
    float sum = 0;
    for (int r = 0; r < ranks; ++r) {
      float of_rank = 0;
      for (int64_t k = 0; k < kPerToken; ++k) {
        const int64_t expert = ids.data<int32_t>()[n * kPerToken + k];
        if (expert >= 0 && expert / El == r) of_rank += of_expert(expert, n);
      }
      sum += float(BFloat16(of_rank));
    }
    expected.data<BFloat16>()[n] = BFloat16(sum);
  }
  for (const CopyPlaces places : {CopyPlaces::kPacked, CopyPlaces::kFixed}) {
    Exchange e(nccl(), Device::kCuda, places);
    e.exchange.plan(gpu(), e.route, to_gpu(ids));
    // Every pair's number of its own, as gates travel, is the row that comes back.
    Tensor numbers = allocate({N, kPerToken}, DType::kF32);
    for (int64_t i = 0; i < numbers.numel(); ++i)
      numbers.data<float>()[i] = of_expert(ids.data<int32_t>()[i], i / kPerToken);
    Tensor row_numbers = poisoned_on_gpu({e.route.num_rows}, DType::kF32);
    e.exchange.dispatch_gates(gpu(), row_numbers, to_gpu(numbers), e.route);
    Tensor rows = poisoned_on_gpu({e.route.num_rows, 1}, DType::kBF16), y = poisoned_on_gpu({N, 1}, DType::kBF16);
    convert(gpu(), rows, row_numbers.view({e.route.num_rows, 1}));
    e.exchange.combine(gpu(), y, rows, e.route);
    expect_same_bits(to_cpu(y), expected, "y");
  }
}

}  // namespace
}  // namespace braid
