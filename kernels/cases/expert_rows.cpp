#include "kernels/expert_rows.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "kernels/core/philox.h"

namespace braid::cases {
namespace {

using enum Storage;
using Ids = std::vector<int32_t>;

struct Order {
  Var row_of_slot, slot_of_row, rows_per_expert;
  operator ExpertOrder() const { return {row_of_slot, slot_of_row, rows_per_expert}; }
};

Order declare_order(Trial& t, const Ids& ids, int64_t K, int64_t E) {
  const int64_t N = std::ssize(ids) / K;
  const Var expert_id = t.input("expert_id", {N, K}, ids), row_of_slot = t.output("row_of_slot", {N, K}, kI32);
  const Var slot_of_row = t.output("slot_of_row", {N * K}, kI32),
            rows_per_expert = t.output("rows_per_expert", {E}, kI64);
  const Order order = {row_of_slot, slot_of_row, rows_per_expert};
  t.forward("expert_order", {row_of_slot, slot_of_row, rows_per_expert},
            [=](Context& ctx) { expert_order(ctx, order, expert_id); }, {.bytes = 12.0 * double(N * K)});
  return order;
}

int64_t rows_in_use(const Ids& ids) {
  return std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id >= 0; });
}

// Rows of C numbers there and back; a GPU is given room for a row per pair, as in training on one rank, or for no more
// than there are.
enum class Room { kPerPair, kExact };
void declare_rows(Trial& t, const Ids& ids, int64_t K, int64_t E, int64_t C, Room given = Room::kPerPair) {
  const int64_t N = std::ssize(ids) / K, R = rows_in_use(ids);
  const int64_t room = given == Room::kExact ? R : R + t.spare_rows(N * K - R);
  const Order order = declare_order(t, ids, K, E);
  const Var x = t.input("x", {N, C}, normal()), rows = t.output("rows", {room, C}, kActivation, kExact);
  t.forward("gather_rows", {rows}, [=](Context& ctx) { gather_rows(ctx, rows, x, order); },
            {.bytes = bytes_of(x, rows)});

  const Var d_rows = t.input("d_rows", {room, C}, edited(normal(), nan_from_row(R)));
  const Var d_x = t.output("y", {N, C});
  t.backward("combine_rows", {d_x}, [=](Context& ctx) { combine_rows(ctx, d_x, d_rows, order); },
             {.bytes = bytes_of(d_rows, d_x)});
  t.loss(rows, d_rows);
  t.gradient(x, d_x);
  const Var added = t.sum("y that is added to", {N, C}, kActivation);
  t.backward("combine_rows", {added}, [=](Context& ctx) { combine_rows(ctx, added, d_rows, order, Accumulate::kYes); });
}

// Rows in two parts, of orders that are windows of the whole: their sums are those of all rows at once, bit for bit.
void declare_parts(Trial& t, Ids ids, int64_t K, int64_t E, int64_t C) {
  const int64_t N = std::ssize(ids) / K, R = rows_in_use(ids), cut = R * 2 / 5;
  for (int64_t n = 0; n < N; ++n) std::sort(ids.begin() + n * K, ids.begin() + (n + 1) * K);
  const Order order = declare_order(t, ids, K, E);
  auto window = [&](int64_t first, int64_t num, const Work& work = {}) {
    const Var row_of_slot = t.output("window.row_of_slot", {N, K}, kI32),
              slot_of_row = t.output("window.slot_of_row", {N * K}, kI32);
    const Var rows_per_expert = t.output("window.rows_per_expert", {E}, kI64);
    const Order part = {row_of_slot, slot_of_row, rows_per_expert};
    t.forward(
        "window_of_order", {row_of_slot, slot_of_row, rows_per_expert},
        [=](Context& ctx) { window_of_order(ctx, part, order, first, num); }, work);
    return part;
  };
  const Order first = window(0, cut, {.bytes = 16.0 * double(N * K)}), second = window(cut, R - cut);
  const Var rows = t.input("rows", {R, C}, normal());
  const Var sums = t.in_out("sums", {N, C}, constant(0), kWide);
  t.forward("add_rows", {sums},
            [=](Context& ctx) {
              add_rows(ctx, sums, rows.rows(0, cut), first);
              add_rows(ctx, sums, rows.rows(cut, R), second);
            },
            {.bytes = bytes_of(rows, sums, sums, sums, sums)});
  const Var at_once = t.in_out("sums of all rows", {N, C}, constant(0), kWide);
  t.forward("add_rows", {at_once}, [=](Context& ctx) { add_rows(ctx, at_once, rows, order); });
  t.same_bits(sums, at_once);

  // As sums come back: rows of the wide dtype, one for each token.
  const Var all = t.input("a place for every token", {N, 1}, [&] {
    Ids place(static_cast<size_t>(N));
    for (int64_t n = 0; n < N; ++n) place[n] = static_cast<int32_t>(n);
    return place;
  }());
  const Var no_slots = t.input("slot_of_row of places", {N}, Ids(static_cast<size_t>(N), -1));
  const Var of_all = t.input("rows_per_expert of places", {1}, std::vector<int64_t>{N});
  const ExpertOrder places = {all, no_slots, of_all};
  const Var wide = t.input("wide rows", {N, C}, normal(), kWide);
  const Var y = t.sum("y of wide rows", {N, C}, kActivation);
  t.forward("combine_rows", {y}, [=](Context& ctx) { combine_rows(ctx, y, wide, places, Accumulate::kYes); });
}

// What only a test asks: a number per pair, as the gates travel; fewer rows than pairs; rows whose addresses do not
// allow vectors.
void declare_odd_rows(Trial& t, const Ids& ids, int64_t K, int64_t E, int64_t C) {
  const int64_t N = std::ssize(ids) / K, R = rows_in_use(ids);
  const Order order = declare_order(t, ids, K, E);
  const ExpertOrder per_pair = {order.row_of_slot.view({N * K, 1}), order.slot_of_row, order.rows_per_expert};
  const Var gate = t.input("gate", {N * K, 1}, normal(), kWide);
  const Var row_gate = t.output("rows of one number", {R, 1}, kWide, kExact);
  const Var back = t.output("y of one number", {N * K, 1}, kWide, kExact);
  t.forward("gather_rows", {row_gate}, [=](Context& ctx) { gather_rows(ctx, row_gate, gate, per_pair); },
            {.bytes = 12.0 * double(R)});
  t.forward("combine_rows", {back}, [=](Context& ctx) { combine_rows(ctx, back, row_gate, per_pair); });

  const Var x = t.input("x", {N * C + 1}, normal()), first = t.part("first rows", {R, C}, kActivation, kExact);
  t.forward("gather_rows", {first}, [=](Context& ctx) {
    gather_rows(ctx, first.rows(0, R / 2), x.rows(1, N * C + 1).view({N, C}), order);
  });
}

// Where tokens go if each of the ranks has `local` experts, and which pairs are of one rank.
void declare_places(Trial& t, const Ids& ids, int64_t K, int64_t E, int64_t local) {
  const int64_t N = std::ssize(ids) / K, S = std::min(K, (E + local - 1) / local);
  const Var expert_id = t.input("expert_id", {N, K}, ids), place = t.output("place", {N, S}, kI32);
  t.forward("token_places", {place}, [=](Context& ctx) { token_places(ctx, place, expert_id, local, N + 3, 1); },
            {.bytes = bytes_of(expert_id, place)});
  const Var rank = t.output("rank", {N, S}, kI32);
  t.forward("token_places", {rank}, [=](Context& ctx) { token_places(ctx, rank, expert_id, local, 1, 0); });
  const Var local_ids = t.in_out("ids", expert_id);
  t.forward("local_expert_ids", {local_ids}, [=](Context& ctx) { local_expert_ids(ctx, local_ids, E / 3, local); },
            {.bytes = 2 * bytes_of(local_ids)});
}

void declare_limit(Trial& t, int64_t E, int64_t room) {
  std::vector<int64_t> counts(static_cast<size_t>(E));
  for (int64_t e = 0; e < E; ++e) counts[e] = e * 7 % 11;
  const Var rows = t.in_out("rows_per_expert", t.input("rows before", {E}, counts));
  const Var needed = t.in_out("needed", t.input("needed before", {1}, std::vector<int64_t>{2}));
  t.forward("limit_rows", {rows, needed}, [=](Context& ctx) { limit_rows(ctx, rows, needed, room); },
            {.bytes = 2 * bytes_of(rows)});
}

// Ids in [-1, E); about one in `drop` is -1, none for 0, all for 1.
Ids random_ids(int64_t N, int64_t K, int64_t E, uint32_t drop) {
  Ids ids;
  for (int64_t i = 0; i < N * K; ++i) {
    const auto bits = philox(1, 0, static_cast<uint64_t>(i));
    ids.push_back(drop && bits[0] % drop == 0 ? -1 : static_cast<int32_t>(bits[1] % uint64_t(E)));
  }
  return ids;
}

Variants hard() {
  Variants variants;
  for (const auto& [N, K, E, drop] : {std::array<int64_t, 4>{1, 1, 1, 0},
                                      {7, 3, 5, 1},
                                      {7, 3, 5, 2},
                                      {300, 10, 512, 0},
                                      {205, 10, 512, 9},    // a slot more than a chunk, and less
                                      {5000, 10, 512, 11},  // many chunks
                                      {3000, 4, 4096, 5},
                                      {2000, 8, 2, 3},
                                      {4096, 2, 1, 0},
                                      {50, 2, 300, 2},
                                      {3000, 4, 37, 7},
                                      {0, 2, 6, 0}})
    variants.push_back({concat("order of ", N, " x ", K, " pairs, ", E, " experts"),
                        [=](Trial& t) { declare_order(t, random_ids(N, K, E, uint32_t(drop)), K, E); }});
  for (const auto& [N, K, C] : {std::array<int64_t, 3>{1, 1, 1},
                                {200, 3, 1},
                                {50, 10, 7},
                                {130, 10, 24},
                                {60, 10, 2048},
                                {33, 12, 136},
                                {20, 4, 16},
                                {63, 2, 65},
                                {64, 2, 64},
                                {65, 2, 130},
                                {0, 2, 8}}) {
    Ids ids = random_ids(N, K, 16, N == 1 ? 0 : 7);
    const std::string label = concat(N, " x ", K, " rows of ", C);
    variants.push_back({label, [=](Trial& t) { declare_rows(t, ids, K, 16, C); }});
    if (N > 1) variants.push_back({label + ", oddly", [=](Trial& t) { declare_odd_rows(t, ids, K, 16, C); }});
    for (auto& id : ids)
      if (id % 8 > 1) id = -1;  // as on one of several ranks, which has few of the experts
    if (N > 1)
      variants.push_back({label + ", most of none", [=](Trial& t) { declare_rows(t, ids, K, 16, C, Room::kExact); }});
    variants.push_back({label + ", in parts", [=](Trial& t) { declare_parts(t, ids, K, 16, C); }});
  }
  for (const auto& [N, K, E, ranks] :
       {std::array<int64_t, 4>{1, 1, 1, 1}, {700, 3, 8, 2}, {3000, 10, 512, 4}, {90, 4, 64, 64}, {65, 2, 9, 3}}) {
    const Ids ids = random_ids(N, K, E, 7);
    variants.push_back({concat("places of ", N, " x ", K, " pairs, ", E, " experts on ", ranks, " ranks"),
                        [=, local = E / ranks](Trial& t) { declare_places(t, ids, K, E, local); }});
    for (int64_t room : {int64_t{1} << 40, 3 * E, int64_t{0}})
      variants.push_back(
          {concat("room for ", room, " rows of ", E, " experts"), [=](Trial& t) { declare_limit(t, E, room); }});
  }
  return variants;
}

Variants checked(const Sizes& s) {
  const int64_t N = kCheckedTokens, E = s.experts, K = s.experts_per_token, C = s.hidden;
  // Every second expert has no rows where there are enough of them; every seventh token is dropped.
  const int64_t stride = 2 * K <= E ? 2 : 1, used = E / stride;
  Ids ids(static_cast<size_t>(N * K), -1);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; n % 7 != 3 && k < K; ++k) ids[n * K + k] = static_cast<int32_t>((n * n + k) % used * stride);
  const std::string label = concat(E, " experts, width ", C);
  return {
      {label, [=](Trial& t) { declare_rows(t, ids, K, E, C); }},
      {label + ", a number per pair", [=](Trial& t) { declare_odd_rows(t, ids, K, E, C); }},
      {label + ", in parts", [=](Trial& t) { declare_parts(t, ids, K, E, C); }},
      {concat("places on two ranks of ", E, " experts"), [=](Trial& t) { declare_places(t, ids, K, E, (E + 1) / 2); }},
      {concat("room for rows of ", E, " experts"), [=](Trial& t) { declare_limit(t, E, 3 * E); }}};
}

Variants timed(const Sizes& s) {
  const int64_t E = s.experts, K = s.experts_per_token, C = s.hidden;
  const Ids ids = random_ids(s.tokens(), K, E, 0);
  const std::string label = concat(s.tokens(), " x ", K, ", E ", E);
  return {{concat(label, ", rows of ", C), [=](Trial& t) { declare_rows(t, ids, K, E, C); }},
          {label + ", rows of 1", [=](Trial& t) { declare_odd_rows(t, ids, K, E, 8); }},
          {concat(label, ", rows of ", C, " in parts"), [=](Trial& t) { declare_parts(t, ids, K, E, C); }},
          {label + ", four ranks", [=](Trial& t) { declare_places(t, ids, K, E, std::max<int64_t>(1, E / 4)); }},
          {concat("room for rows of ", E, " experts"), [=](Trial& t) { declare_limit(t, E, 3 * E); }}};
}

}  // namespace

OperatorCase expert_rows_case() { return {"expert_rows", hard, checked, timed, hidden_row_implementation}; }

}  // namespace braid::cases
