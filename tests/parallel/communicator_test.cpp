#include "parallel/communicator.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <thread>

#include "tests/parallel/communicator_contract.h"

namespace braid {
namespace {

using namespace braid::testing;

// None, sizes that no number of ranks divides, both sides of the border between small and large transfers, and more
// than one block of a reduction.
const std::vector<int64_t> kSizes = {0, 1, 2, 3, 5, 1000, 4099, 140009};

// The same function on every rank, so any rank can compute what any other holds.
template <class T>
T value_of(int rank, int64_t i) {
  return static_cast<T>((rank + 1) * (i % 7 + 1));
}

template <class T>
T sum_of(int num_ranks, int64_t i) {
  const int64_t ranks = num_ranks * (num_ranks + 1) / 2;
  return static_cast<T>(ranks * (i % 7 + 1));
}

template <class T>
Tensor values_of(int rank, int64_t count) {
  Tensor t = allocate({count}, dtype_of<T>());
  for (int64_t i = 0; i < count; ++i) t.data<T>()[i] = value_of<T>(rank, i);
  return t;
}

Tensor noise_of(int rank, int64_t count) { return random_normal({count}, DType::kF32, 100 + rank); }

// What a reduction in rank order must give.
Tensor noise_sum(int num_ranks, int64_t count) {
  Tensor sum = noise_of(0, count);
  for (int r = 1; r < num_ranks; ++r) {
    const Tensor term = noise_of(r, count);
    for (int64_t i = 0; i < count; ++i) sum.data<float>()[i] += term.data<float>()[i];
  }
  return sum;
}

template <class T>
class EveryDType : public ::testing::Test {};
using DTypes = ::testing::Types<double, float, int64_t, int32_t, uint8_t>;
TYPED_TEST_SUITE(EveryDType, DTypes);

TYPED_TEST(EveryDType, AllReduceSumsOverRanks) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  const int W = world().size();
  for (int64_t count : kSizes) {
    Tensor x = values_of<T>(world().rank(), count);
    world().all_reduce(ctx, x, ReduceOp::kSum);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(x.data<T>()[i], sum_of<T>(W, i)) << count << ", " << i;
  }
}

TYPED_TEST(EveryDType, AllReduceFindsTheLargest) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  const int W = world().size();
  for (int64_t count : kSizes) {
    Tensor x = allocate({count}, dtype_of<T>());
    // A different rank holds the largest value of each element; the others hold less.
    for (int64_t i = 0; i < count; ++i) x.data<T>()[i] = static_cast<T>(100 - (world().rank() + i) % W);
    world().all_reduce(ctx, x, ReduceOp::kMax);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(x.data<T>()[i], T(100)) << count << ", " << i;
  }
}

TYPED_TEST(EveryDType, ReduceScatterGivesEachRankItsPart) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  const int W = world().size();
  for (int64_t count : kSizes) {
    Tensor full = values_of<T>(world().rank(), W * count), shard = poisoned({count}, dtype_of<T>());
    world().reduce_scatter(ctx, shard, full, ReduceOp::kSum);
    for (int64_t i = 0; i < count; ++i) ASSERT_EQ(shard.data<T>()[i], sum_of<T>(W, world().rank() * count + i));
    expect_same_bits(full, values_of<T>(world().rank(), W * count), "full is an input");
  }
}

TYPED_TEST(EveryDType, AllGatherPutsShardsInRankOrder) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  for (int64_t count : kSizes) {
    Tensor full = poisoned({W, count}, dtype_of<T>()), in_place = poisoned({W, count}, dtype_of<T>());
    world().all_gather(ctx, full, values_of<T>(rank, count));
    for (int r = 0; r < W; ++r) expect_same_bits(full.rows(r, r + 1), values_of<T>(r, count));

    Tensor own = in_place.rows(rank, rank + 1);
    if (count > 0) std::memcpy(own.raw(), full.rows(rank, rank + 1).raw(), own.bytes());
    world().all_gather(ctx, in_place, own);
    expect_same_bits(in_place, full, "shard inside full");
  }
}

TYPED_TEST(EveryDType, AllToAllMovesUnevenRows) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  auto num_rows = [](int from, int to) { return int64_t{(from + 2 * to) % 3}; };  // 0, 1 or 2
  std::vector<int64_t> send_rows, recv_rows;
  for (int r = 0; r < W; ++r) {
    send_rows.push_back(num_rows(rank, r));
    recv_rows.push_back(num_rows(r, rank));
  }
  auto fill = [](T* row, int from, int to, int64_t i) {
    for (int c = 0; c < 6; ++c) row[c] = static_cast<T>(50 * from + 10 * to + 6 * i + c);
  };
  auto total = [](const std::vector<int64_t>& rows) { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); };
  Tensor send = poisoned({total(send_rows), 2, 3}, dtype_of<T>()),
         recv = poisoned({total(recv_rows), 6}, dtype_of<T>());
  Tensor expected = poisoned(recv.shape(), dtype_of<T>());
  int64_t send_row = 0, recv_row = 0;
  for (int r = 0; r < W; ++r) {
    for (int64_t i = 0; i < send_rows[r]; ++i) fill(send.data<T>() + 6 * send_row++, rank, r, i);
    for (int64_t i = 0; i < recv_rows[r]; ++i) fill(expected.data<T>() + 6 * recv_row++, r, rank, i);
  }
  world().all_to_all_rows(ctx, recv, recv_rows, send, send_rows);
  expect_same_bits(recv, expected);
}

TYPED_TEST(EveryDType, BroadcastReplacesEverybodysTensor) {
  using T = TypeParam;
  Context ctx = Context::cpu();
  for (int root = 0; root < world().size(); ++root) {
    for (int64_t count : kSizes) {
      Tensor x = values_of<T>(world().rank(), count);
      world().broadcast(ctx, x, root);
      expect_same_bits(x, values_of<T>(root, count));
    }
  }
}

TEST(Communicator, SumsInRankOrder) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  for (int64_t count : kSizes) {
    const Tensor mine = noise_of(rank, W * count), sum = noise_sum(W, W * count);
    for (int repeat = 0; repeat < 2; ++repeat) {
      Tensor x = copy_of(mine.rows(0, count)), shard = poisoned({count}, DType::kF32);
      world().all_reduce(ctx, x, ReduceOp::kSum);
      expect_same_bits(x, sum.rows(0, count), "all_reduce");
      world().reduce_scatter(ctx, shard, mine, ReduceOp::kSum);
      expect_same_bits(shard, sum.rows(rank * count, (rank + 1) * count), "reduce_scatter");
    }
  }
}

TEST(Communicator, SameBitsForEveryThreadCount) {
  expect_same_bits_for_every_thread_count([] {
    Context ctx = Context::cpu();
    Tensor x = noise_of(world().rank(), 140009);
    world().all_reduce(ctx, x, ReduceOp::kSum);
    return std::vector<Tensor>{x};
  });
}

TEST(Communicator, TheLargestOfANaNIsNaNWhicheverRankHoldsIt) {
  Context ctx = Context::cpu();
  for (int holder = 0; holder < world().size(); ++holder) {
    const double mine = world().rank() == holder ? std::numeric_limits<double>::quiet_NaN() : 1.0;
    Tensor x = tensor_of<double>({mine, -2.0}, {2});
    world().all_reduce(ctx, x, ReduceOp::kMax);
    EXPECT_TRUE(std::isnan(x.data<double>()[0])) << holder;
    EXPECT_EQ(x.data<double>()[1], -2.0);
  }
}

TEST(Communicator, NobodyLeavesABarrierBeforeTheLastHasCome) {
  Context ctx = Context::cpu();
  auto now_ns = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  if (world().rank() == world().size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
  Tensor last_entry = tensor_of<int64_t>({now_ns()}, {1});
  world().barrier(ctx);
  const int64_t exit_ns = now_ns();
  world().all_reduce(ctx, last_entry, ReduceOp::kMax);  // the ranks of a test share one clock
  EXPECT_GE(exit_ns, last_entry.data<int64_t>()[0]);
}

TEST(Communicator, SplitsByColorInRankOrder) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  const auto parity = world().split(rank % 2), own = world().split(rank), everyone = world().split(7);
  std::vector<int32_t> same_parity, all;
  for (int r = 0; r < W; ++r) {
    if (r % 2 == rank % 2) same_parity.push_back(r);
    all.push_back(r);
  }
  EXPECT_EQ(members(ctx, *parity), same_parity);
  EXPECT_EQ(parity->rank(), rank / 2);
  EXPECT_EQ(members(ctx, *own), std::vector<int32_t>{rank});
  EXPECT_EQ(members(ctx, *everyone), all);
  EXPECT_EQ(members(ctx, *everyone->split(rank / 2)), members(ctx, *world().split(rank / 2)));
}

TEST(Communicator, AGroupOfOneIsTheIdentity) {
  Context ctx = Context::cpu();
  const auto alone = world().split(world().rank());
  for (int64_t count : kSizes) {
    const Tensor x = noise_of(world().rank(), count);
    Tensor y = copy_of(x), shard = poisoned({count}, DType::kF32), full = poisoned({count}, DType::kF32);
    Tensor received = poisoned({count}, DType::kF32);
    alone->all_reduce(ctx, y, ReduceOp::kSum);
    alone->reduce_scatter(ctx, shard, x, ReduceOp::kSum);
    alone->all_gather(ctx, full, x);
    alone->all_to_all_rows(ctx, received, {{count}}, x, {{count}});
    for (const Tensor& result : {y, shard, full, received}) expect_same_bits(result, x);
    alone->broadcast(ctx, y, 0);
    alone->barrier(ctx);
    expect_same_bits(y, x);
  }
}

TEST(Communicator, NamesTheTensorThatDoesNotFit) {
  Context ctx = Context::cpu();
  auto tensor = [](Shape shape, DType dtype) { return zeros(shape, dtype); };
  expect_refusals(ctx, world(), tensor);
  expect_refusals(ctx, *world().split(world().rank()), tensor);
  expect_refusals(ctx, *make_local_communicator(), tensor);
}

}  // namespace
}  // namespace braid
