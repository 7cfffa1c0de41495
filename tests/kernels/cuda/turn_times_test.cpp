#include "kernels/core/turn_times.h"

#include "kernels/load_balance.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class TurnTimesCuda : public CudaTest {};
BRAID_FOR_EACH_ACTIVATION(TurnTimesCuda);

// 1 GiB against 64 KiB: far more than launches and clocks can hide.
TEST_P(TurnTimesCuda, TimesTheWorkOfEachTurn) {
  Tensor large = on_gpu({int64_t{1} << 30}, DType::kU8), small = large.rows(0, int64_t{1} << 16);
  const Tensor head_start = on_gpu({int64_t{256} << 20}, DType::kU8);
  for (Launch launch : {Launch::kGraph, Launch::kDirect}) {
    const std::vector<double> ms =
        turn_times_ms(gpu, 4, launch, head_start, [&](int turn) { fill_zero(gpu, turn == 2 ? large : small); });
    ASSERT_EQ(ms.size(), 4u);
    for (int turn : {1, 3}) EXPECT_LT(5 * ms[turn], ms[2]) << turn;
    EXPECT_GT(ms[2], 0.05);
    EXPECT_LT(ms[2], 50);
  }
}

// A graph is recorded first and run after that, once.
TEST_P(TurnTimesCuda, RunsEachTurnOnce) {
  for (Launch launch : {Launch::kGraph, Launch::kDirect}) {
    Tensor totals = to_gpu(tensor_of<int64_t>({0, 0, 0}, {3})), one = to_gpu(tensor_of<int64_t>({1}, {1, 1}));
    turn_times_ms(gpu, 3, launch, on_gpu({1024}, DType::kU8),
                  [&](int turn) { add_counts(gpu, totals.rows(turn, turn + 1), one); });
    const Tensor result = to_cpu(totals);
    for (int64_t turn = 0; turn < 3; ++turn) EXPECT_EQ(result.data<int64_t>()[turn], 1) << turn;
  }
}

}  // namespace
}  // namespace braid
