#include "parallel/rounded_reduction.h"

#include "kernels/core/float_types.h"
#include "tests/parallel/mpi_testing.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// What rank r has at element i: numbers of all sizes, whose sum is not a bf16 number.
float number(int64_t rank, int64_t i) {
  const float sign = (i + rank) % 3 == 0 ? -1.0f : 1.0f;
  return static_cast<float>(BFloat16(sign * static_cast<float>(1 + (i * 7919 + rank * 104729) % 255) *
                                     std::ldexp(1.0f, static_cast<int>((i + 5 * rank) % 9))));
}

TEST(RoundedReduction, RoundsTheSumOnce) {
  Context ctx = Context::cpu();
  Communicator& ranks = world();
  const int64_t size = ranks.size(), rank = ranks.rank();
  // The last is more than one block.
  for (const int64_t n : {int64_t{1}, int64_t{130}, (int64_t{1} << 22) / size + 77}) {
    Tensor full = zeros({size * n}, DType::kBF16);
    for (int64_t i = 0; i < size * n; ++i) full.data<BFloat16>()[i] = BFloat16(number(rank, i));
    Tensor apart = zeros({n}, DType::kBF16);
    const Tensor before = copy_of(full);
    reduce_scatter_rounded(ctx, ranks, apart, full);
    expect_same_bits(full, before, "full");
    Tensor own = full.rows(rank * n, (rank + 1) * n);
    reduce_scatter_rounded(ctx, ranks, own, full);
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      float sum = 0;
      for (int64_t r = 0; r < size; ++r) sum += number(r, rank * n + i);
      wrong += own.data<BFloat16>()[i].bits != BFloat16(sum).bits;
    }
    EXPECT_EQ(wrong, 0) << n;
    expect_same_bits(apart, own);
  }
}

TEST(RoundedReduction, LeavesWideNumbersToTheCommunicator) {
  Context ctx = Context::cpu();
  Communicator& ranks = world();
  const int64_t size = ranks.size(), rank = ranks.rank();
  Tensor full = zeros_f64({size * 3}), shard = zeros_f64({3});
  for (int64_t i = 0; i < size * 3; ++i) full.data<double>()[i] = double(i) + 0.25 * double(rank);
  reduce_scatter_rounded(ctx, ranks, shard, full);
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(shard.data<double>()[i], double(size * (rank * 3 + i)) + 0.25 * double(size * (size - 1) / 2));
}

}  // namespace
}  // namespace braid
