#include "kernels/expert_rows.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/philox.h"
#include "tests/kernels/cuda/cuda_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class ExpertRowsCuda : public CudaTest {
 protected:
  // Ids in [-1, E); about one in `drop` is -1, none for 0, all for 1.
  static Tensor random_ids(int64_t N, int64_t K, int64_t E, uint32_t drop) {
    Tensor ids = zeros({N, K}, DType::kI32);
    for (int64_t i = 0; i < N * K; ++i) {
      const auto bits = philox(1, 0, i);
      ids.data<int32_t>()[i] = drop && bits[0] % drop == 0 ? -1 : static_cast<int32_t>(bits[1] % E);
    }
    return ids;
  }
  static ExpertOrder new_order(int64_t N, int64_t K, int64_t E) {
    return {poisoned({N, K}, DType::kI32), poisoned({N * K}, DType::kI32), poisoned({E}, DType::kI64)};
  }
  static ExpertOrder to_gpu(const ExpertOrder& order) {
    return {CudaTest::to_gpu(order.row_of_slot), CudaTest::to_gpu(order.slot_of_row),
            CudaTest::to_gpu(order.rows_per_expert)};
  }
  static int64_t used_rows(const ExpertOrder& order) {
    const int64_t* rows = order.rows_per_expert.data<int64_t>();
    return std::accumulate(rows, rows + order.rows_per_expert.numel(), int64_t{0});
  }
  // The order on the CPU, and one that the GPU must have made alike.
  ExpertOrder expect_same_order(const Tensor& ids, int64_t E) {
    const int64_t N = ids.dim(0), K = ids.dim(1);
    ExpertOrder expected = new_order(N, K, E);
    expert_order(cpu, expected, ids);
    const ExpertOrder order = to_gpu(new_order(N, K, E));
    expert_order(gpu, order, CudaTest::to_gpu(ids));
    expect_same_bits(to_cpu(order.row_of_slot), expected.row_of_slot, "row_of_slot");
    expect_same_bits(to_cpu(order.slot_of_row), expected.slot_of_row, "slot_of_row");
    expect_same_bits(to_cpu(order.rows_per_expert), expected.rows_per_expert, "rows_per_expert");
    return expected;
  }
  static constexpr Tolerance kExact = {0, 0};
};
BRAID_FOR_EACH_ACTIVATION(ExpertRowsCuda);

TEST_P(ExpertRowsCuda, Order) {
  if (activation() != DType::kF32) GTEST_SKIP() << "has no activations";
  for (const auto& [N, K, E, drop] : {std::array<int64_t, 4>{1, 1, 1, 0},
                                      {7, 3, 5, 1},
                                      {7, 3, 5, 2},
                                      {300, 10, 512, 0},
                                      {205, 10, 512, 9},    // one slot more than a chunk, and less
                                      {5000, 10, 512, 11},  // many chunks
                                      {3000, 4, 4096, 5},
                                      {2000, 8, 2, 3},
                                      {4096, 2, 1, 0}}) {
    SCOPED_TRACE(::testing::Message() << N << " x " << K << " of " << E);
    expect_same_order(random_ids(N, K, E, static_cast<uint32_t>(drop)), E);
  }
}

TEST_P(ExpertRowsCuda, OrderOfNothing) {
  const ExpertOrder order = to_gpu(new_order(0, 2, 6));
  expert_order(gpu, order, on_gpu({0, 2}, DType::kI32));
  expect_same_bits(to_cpu(order.rows_per_expert), zeros({6}, DType::kI64));
}

TEST_P(ExpertRowsCuda, GatherAndCombine) {
  for (const auto& [N, K, C] :
       {std::array<int64_t, 3>{1, 1, 1}, {200, 3, 1}, {50, 10, 7}, {130, 10, 24}, {60, 10, 2048}, {33, 12, 136}}) {
    SCOPED_TRACE(::testing::Message() << N << " x " << K << " rows of " << C);
    const int64_t E = 16;
    const ExpertOrder order = expect_same_order(random_ids(N, K, E, N == 1 ? 0 : 7), E), gpu_order = to_gpu(order);
    const int64_t used = used_rows(order), R = N * K;
    const Tensor x = rounded(random_f64({N, C}, 1)), rows_in = rounded(random_f64({R, C}, 2));
    Tensor rows = zeros_f64({used, C}), y = zeros_f64({N, C});
    gather_rows(cpu, rows, x, order);
    combine_rows(cpu, y, rows_in, order);

    Tensor gpu_rows = on_gpu({R, C}, activation()), gpu_y = on_gpu({N, C}, activation());
    gather_rows(gpu, gpu_rows, CudaTest::to_gpu(x, activation()), gpu_order);
    combine_rows(gpu, gpu_y, CudaTest::to_gpu(rows_in, activation()), gpu_order);
    expect_matches(gpu_rows.rows(0, used), rows, "rows", kExact);
    const Tensor all = to_cpu(gpu_rows);
    for (int64_t i = used * C; i < R * C; ++i) ASSERT_TRUE(std::isnan(value_at(all, i))) << "a row that no pair has";
    expect_matches(gpu_y, y, "y");
    combine_rows(cpu, y, rows_in, order, Accumulate::kYes);
    combine_rows(gpu, gpu_y, CudaTest::to_gpu(rows_in, activation()), gpu_order, Accumulate::kYes);
    expect_matches(gpu_y, y, "y twice");

    // Fewer rows than pairs: only those are written.
    Tensor fewer = on_gpu({used, C}, activation());
    gather_rows(gpu, fewer.rows(0, used / 2), CudaTest::to_gpu(x, activation()), gpu_order);
    if (used / 2 > 0) expect_matches(fewer.rows(0, used / 2), rows.rows(0, used / 2), "rows", kExact);
    const Tensor rest = to_cpu(fewer);
    for (int64_t i = used / 2 * C; i < used * C; ++i) ASSERT_TRUE(std::isnan(value_at(rest, i)));
  }
}

// Addresses that do not allow 16-byte accesses.
TEST_P(ExpertRowsCuda, UnalignedRows) {
  const int64_t N = 20, K = 4, E = 8, C = 16;
  const ExpertOrder order = expect_same_order(random_ids(N, K, E, 0), E), gpu_order = to_gpu(order);
  const Tensor x = rounded(random_f64({N, C}, 1));
  Tensor rows = zeros_f64({N * K, C}), gpu_x = on_gpu({N * C + 1}, activation());
  gather_rows(cpu, rows, x, order);
  Tensor shifted = gpu_x.rows(1, N * C + 1).view({N, C}), gpu_rows = on_gpu({N * K, C}, activation());
  copy(gpu, shifted, CudaTest::to_gpu(x, activation()));
  gather_rows(gpu, gpu_rows, shifted, gpu_order);
  expect_matches(gpu_rows, rows, "rows", kExact);
}

TEST_P(ExpertRowsCuda, PlacesIdsAndLimits) {
  if (activation() != DType::kF32) GTEST_SKIP() << "has no activations";
  for (const auto& [N, K, E, ranks] :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {700, 3, 8, 2}, {3000, 10, 512, 4}, {90, 4, 64, 64}}) {
    SCOPED_TRACE(::testing::Message() << N << " x " << K << " of " << E << " on " << ranks);
    const int64_t El = E / ranks, S = std::min(K, ranks);
    const Tensor ids = random_ids(N, K, E, 7), gpu_ids = CudaTest::to_gpu(ids);
    for (const auto& [rank_stride, token_stride] : {std::array<int64_t, 2>{1, 0}, {N + 3, 1}}) {
      Tensor place = poisoned({N, S}, DType::kI32), gpu_place = on_gpu({N, S}, DType::kI32);
      token_places(cpu, place, ids, El, rank_stride, token_stride);
      token_places(gpu, gpu_place, gpu_ids, El, rank_stride, token_stride);
      expect_same_bits(to_cpu(gpu_place), place, "place");
    }
    local_expert_ids(cpu, ids, E / 3, El);
    local_expert_ids(gpu, gpu_ids, E / 3, El);
    expect_same_bits(to_cpu(gpu_ids), ids, "ids");

    Tensor rows = zeros({E}, DType::kI64), needed = zeros({1}, DType::kI64);
    for (int64_t e = 0; e < E; ++e) rows.data<int64_t>()[e] = e * 7 % 11;
    const Tensor all_rows = copy_of(rows), gpu_needed = CudaTest::to_gpu(needed);
    for (const int64_t room : {int64_t{1} << 40, 3 * E, int64_t{0}}) {
      Tensor gpu_rows = CudaTest::to_gpu(all_rows);
      rows = copy_of(all_rows);
      limit_rows(cpu, rows, needed, room);
      limit_rows(gpu, gpu_rows, gpu_needed, room);
      expect_same_bits(to_cpu(gpu_rows), rows, "rows_per_expert");
      expect_same_bits(to_cpu(gpu_needed), needed, "needed");
    }
  }
}

TEST_P(ExpertRowsCuda, SameBits) {
  const int64_t N = 3000, K = 10, E = 512, C = 64;
  const Tensor ids = CudaTest::to_gpu(random_ids(N, K, E, 13)),
               x = CudaTest::to_gpu(random_f64({N, C}, 1), activation());
  expect_same_bits_every_time([&] {
    const ExpertOrder order = to_gpu(new_order(N, K, E));
    expert_order(gpu, order, ids);
    Tensor rows = on_gpu({N * K, C}, activation()), y = on_gpu({N, C}, activation());
    gather_rows(gpu, rows, x, order);
    combine_rows(gpu, y, rows, order);
    return std::vector<Tensor>{order.row_of_slot, order.slot_of_row, order.rows_per_expert, rows, y};
  });
}

}  // namespace
}  // namespace braid
