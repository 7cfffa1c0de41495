#include "kernels/expert_rows.h"

#include <algorithm>

#include "kernels/core/philox.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

template <class T>
std::vector<T> values_of(const Tensor& t) {
  return {t.data<T>(), t.data<T>() + t.numel()};
}

ExpertOrder order_of(const Tensor& expert_id, int64_t E) {
  Context ctx = Context::cpu();
  ExpertOrder order{.row_of_slot = poisoned(expert_id.shape(), DType::kI32),
                    .slot_of_row = poisoned({expert_id.numel()}, DType::kI32),
                    .rows_per_expert = poisoned({E}, DType::kI64)};
  expert_order(ctx, order, expert_id);
  return order;
}

// Ids in [-1, E); about one in `drop` is -1.
Tensor random_ids(int64_t N, int64_t K, int64_t E, uint32_t drop, uint64_t seed) {
  Tensor ids = zeros({N, K}, DType::kI32);
  for (int64_t i = 0; i < N * K; ++i) {
    const auto bits = philox(seed, 0, i);
    ids.data<int32_t>()[i] = drop && bits[0] % drop == 0 ? -1 : static_cast<int32_t>(bits[1] % E);
  }
  return ids;
}

int64_t rows_of(const ExpertOrder& order) {
  int64_t sum = 0;
  for (int64_t rows : values_of<int64_t>(order.rows_per_expert)) sum += rows;
  return sum;
}

TEST(ExpertOrder, SortsByExpertThenTokenThenSlot) {
  Tensor ids = tensor_of<int32_t>({2, 0,   //
                                   -1, 2,  //
                                   0, 2},
                                  {3, 2});
  const ExpertOrder order = order_of(ids, 4);
  EXPECT_EQ(values_of<int64_t>(order.rows_per_expert), (std::vector<int64_t>{2, 0, 3, 0}));
  EXPECT_EQ(values_of<int32_t>(order.row_of_slot), (std::vector<int32_t>{2, 0, -1, 3, 1, 4}));
  const auto slots = values_of<int32_t>(order.slot_of_row);
  EXPECT_EQ((std::vector<int32_t>{slots.begin(), slots.begin() + 5}), (std::vector<int32_t>{1, 4, 0, 3, 5}));
}

TEST(ExpertOrder, IsStableAndComplete) {
  for (const auto& [N, K, E, drop] :
       {std::array<int64_t, 4>{1, 1, 1, 0}, {700, 3, 5, 0}, {3000, 4, 37, 7}, {50, 2, 300, 2}}) {
    Tensor ids = random_ids(N, K, E, static_cast<uint32_t>(drop), 1);
    const ExpertOrder order = order_of(ids, E);
    const int32_t* id = ids.data<int32_t>();
    std::vector<int32_t> expected;
    for (int32_t slot = 0; slot < N * K; ++slot)
      if (id[slot] >= 0) expected.push_back(slot);
    std::stable_sort(expected.begin(), expected.end(), [id](int32_t a, int32_t b) { return id[a] < id[b]; });
    ASSERT_EQ(rows_of(order), static_cast<int64_t>(expected.size()));
    std::vector<int64_t> count(E);
    for (size_t row = 0; row < expected.size(); ++row) {
      ASSERT_EQ(order.slot_of_row.data<int32_t>()[row], expected[row]);
      ASSERT_EQ(order.row_of_slot.data<int32_t>()[expected[row]], static_cast<int32_t>(row));
      ++count[id[expected[row]]];
    }
    EXPECT_EQ(values_of<int64_t>(order.rows_per_expert), count);
    for (int32_t slot = 0; slot < N * K; ++slot) ASSERT_EQ(order.row_of_slot.data<int32_t>()[slot] < 0, id[slot] < 0);
  }
}

TEST(ExpertOrder, OfNoTokensOrOnlyDroppedOnesHasNoRows) {
  EXPECT_EQ(values_of<int64_t>(order_of(zeros({0, 2}, DType::kI32), 3).rows_per_expert), std::vector<int64_t>(3));
  const ExpertOrder dropped = order_of(tensor_of<int32_t>({-1, -1}, {1, 2}), 3);
  EXPECT_EQ(values_of<int64_t>(dropped.rows_per_expert), std::vector<int64_t>(3));
  EXPECT_EQ(values_of<int32_t>(dropped.row_of_slot), (std::vector<int32_t>{-1, -1}));
}

TEST(ExpertOrder, PutsEverythingOnOneExpert) {
  Tensor ids = zeros({5000, 1}, DType::kI32);
  std::fill_n(ids.data<int32_t>(), 5000, 2);
  const ExpertOrder order = order_of(ids, 4);
  EXPECT_EQ(values_of<int64_t>(order.rows_per_expert), (std::vector<int64_t>{0, 0, 5000, 0}));
  for (int32_t i = 0; i < 5000; ++i) ASSERT_EQ(order.slot_of_row.data<int32_t>()[i], i);
}

TEST(GatherRows, CopiesTheTokenOfEachRow) {
  Context ctx = Context::cpu();
  Tensor ids = random_ids(40, 3, 7, 5, 2), x = random_normal({40, 9}, DType::kF32, 1);
  const ExpertOrder order = order_of(ids, 7);
  const int64_t R = rows_of(order);
  Tensor rows = poisoned({R, 9}, DType::kF32);
  gather_rows(ctx, rows, x, order);
  for (int64_t r = 0; r < R; ++r) {
    const int64_t token = order.slot_of_row.data<int32_t>()[r] / 3;
    expect_same_bits(rows.rows(r, r + 1), x.rows(token, token + 1));
  }
  Tensor first = poisoned({10, 9}, DType::kF32);
  gather_rows(ctx, first, x, order);
  expect_same_bits(first, rows.rows(0, 10));
}

TEST(CombineRows, AddsInSlotOrder) {
  Context ctx = Context::cpu();
  // 1 + 1e8 - 1e8 is 0 in this order and 1 in the other.
  Tensor ids = tensor_of<int32_t>({2, 1, 0}, {1, 3});
  const ExpertOrder order = order_of(ids, 3);
  Tensor y = poisoned({1, 1}, DType::kF32);
  combine_rows(ctx, y, tensor_of<float>({-1e8f, 1e8f, 1}, {3, 1}), order);
  EXPECT_EQ(y.data<float>()[0], 0);
  combine_rows(ctx, y, tensor_of<float>({1, 1e8f, -1e8f}, {3, 1}), order);
  EXPECT_EQ(y.data<float>()[0], 1);
  // What is there is added to the sum: 1e8 + ((1 - 1e8) + 3).
  y.data<float>()[0] = 1e8f;
  combine_rows(ctx, y, tensor_of<float>({3, -1e8f, 1}, {3, 1}), order, Accumulate::kYes);
  EXPECT_EQ(y.data<float>()[0], 0);
}

TEST(CombineRows, OfATokenWithoutRowsIsZero) {
  Context ctx = Context::cpu();
  const ExpertOrder order = order_of(tensor_of<int32_t>({-1, -1, 0, -1}, {2, 2}), 1);
  Tensor y = poisoned({2, 3}, DType::kF64);
  combine_rows(ctx, y, tensor_of<double>({1, 2, 3}, {1, 3}), order);
  EXPECT_EQ(values_of<double>(y), (std::vector<double>{0, 0, 0, 1, 2, 3}));
}

TEST(CombineRows, UndoesGatherRowsWithGatesThatSumToOne) {
  Context ctx = Context::cpu();
  Tensor ids = random_ids(60, 4, 9, 0, 3), x = random_f64({60, 17}, 1), gate = uniform_f64({60, 4}, 0.1, 1, 2);
  for (int64_t n = 0; n < 60; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < 4; ++k) sum += gate.data<double>()[n * 4 + k];
    for (int64_t k = 0; k < 4; ++k) gate.data<double>()[n * 4 + k] /= sum;
  }
  const ExpertOrder order = order_of(ids, 9);
  Tensor rows = poisoned({240, 17}, DType::kF64), y = poisoned({60, 17}, DType::kF64);
  gather_rows(ctx, rows, x, order);
  for (int64_t r = 0; r < 240; ++r)
    for (int64_t c = 0; c < 17; ++c)
      rows.data<double>()[r * 17 + c] *= gate.data<double>()[order.slot_of_row.data<int32_t>()[r]];
  combine_rows(ctx, y, rows, order);
  expect_close(y, x, 1e-15);
}

TEST(TokenPlaces, NamesEveryRankOfATokenOnceInOrder) {
  Context ctx = Context::cpu();
  // Two experts per rank.
  const Tensor ids = tensor_of<int32_t>({5, 0, 1,     //
                                         -1, 4, 3,    //
                                         -1, -1, -1,  //
                                         2, 0, 4},
                                        {4, 3});
  Tensor place = poisoned({4, 3}, DType::kI32);
  token_places(ctx, place, ids, 2, 1, 0);
  EXPECT_EQ(values_of<int32_t>(place), (std::vector<int32_t>{0, 2, -1, 1, 2, -1, -1, -1, -1, 0, 1, 2}));
  token_places(ctx, place, ids, 2, 10, 1);
  EXPECT_EQ(values_of<int32_t>(place), (std::vector<int32_t>{0, 20, -1, 11, 21, -1, -1, -1, -1, 3, 13, 23}));
  Tensor one = poisoned({4, 1}, DType::kI32);  // all on one rank
  token_places(ctx, one, ids, 6, 10, 1);
  EXPECT_EQ(values_of<int32_t>(one), (std::vector<int32_t>{0, 1, -1, 3}));
}

TEST(LocalExpertIds, KeepsThoseOfThisRank) {
  Context ctx = Context::cpu();
  Tensor ids = tensor_of<int32_t>({3, 4, 5, 6, -1, 0}, {2, 3});
  local_expert_ids(ctx, ids, 4, 2);
  EXPECT_EQ(values_of<int32_t>(ids), (std::vector<int32_t>{-1, 0, 1, -1, -1, -1}));
}

TEST(LimitRows, CutsFromTheEndAndRemembersTheMost) {
  Context ctx = Context::cpu();
  Tensor rows = tensor_of<int64_t>({3, 0, 4, 2, 1}, {5}), needed = zeros({1}, DType::kI64);
  limit_rows(ctx, rows, needed, 10);
  EXPECT_EQ(values_of<int64_t>(rows), (std::vector<int64_t>{3, 0, 4, 2, 1}));
  EXPECT_EQ(*needed.data<int64_t>(), 10);
  limit_rows(ctx, rows, needed, 5);
  EXPECT_EQ(values_of<int64_t>(rows), (std::vector<int64_t>{3, 0, 2, 0, 0}));
  EXPECT_EQ(*needed.data<int64_t>(), 10);
}

TEST(ExpertRows, NamesTheTensorOfAWrongShapeOrDtype) {
  Context ctx = Context::cpu();
  Tensor ids = zeros({3, 2}, DType::kI32);
  const ExpertOrder order = order_of(ids, 4);
  EXPECT_EQ(message_of([&] {
              expert_order(ctx, {order.row_of_slot, zeros({5}, DType::kI32), order.rows_per_expert}, ids);
            }),
            "slot_of_row: expected shape (6), got (5)");
  EXPECT_EQ(message_of([&] {
              expert_order(ctx, {order.row_of_slot, order.slot_of_row, zeros({4}, DType::kI32)}, ids);
            }),
            "rows_per_expert: expected dtype I64, got I32");
  EXPECT_EQ(message_of([&] {
              expert_order(ctx, order, zeros({3, 2}, DType::kI64));
            }),
            "expert_id: expected dtype I32, got I64");
  Tensor x = zeros_f64({3, 8}), rows = zeros_f64({6, 8});
  EXPECT_EQ(message_of([&] {
              gather_rows(ctx, zeros_f64({6, 7}), x, order);
            }),
            "rows: expected shape (6, 8), got (6, 7)");
  EXPECT_EQ(message_of([&] {
              gather_rows(ctx, zeros_f64({7, 8}), x, order);
            }),
            "rows: has 7 rows, but rows_per_expert sums to 6");
  EXPECT_EQ(message_of([&] {
              combine_rows(ctx, x, zeros_f64({5, 8}), order);
            }),
            "rows: has 5 rows, but rows_per_expert sums to 6");
  EXPECT_EQ(message_of([&] {
              combine_rows(ctx, x, zeros({6, 8}, DType::kF32), order);
            }),
            "rows: expected dtype F64, got F32");
  EXPECT_EQ(message_of([&] {
              combine_rows(ctx, zeros_f64({4, 8}), rows, order);
            }),
            "row_of_slot: expected shape (4, 2), got (3, 2)");
  EXPECT_EQ(message_of([&] {
              token_places(ctx, zeros({4, 1}, DType::kI32), ids, 2, 1, 0);
            }),
            "place: expected shape (3, 1), got (4, 1)");
  EXPECT_EQ(message_of([&] { local_expert_ids(ctx, zeros({3}, DType::kI64), 0, 2); }),
            "ids: expected dtype I32, got I64");
  EXPECT_EQ(message_of([&] { limit_rows(ctx, zeros({3}, DType::kI64), zeros({2}, DType::kI64), 1); }),
            "needed: expected shape (1), got (2)");
}

}  // namespace
}  // namespace braid
