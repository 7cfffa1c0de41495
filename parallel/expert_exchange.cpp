#include "parallel/expert_exchange.h"

#include <algorithm>
#include <cmath>

#include "kernels/build_config.h"
#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/core/profile.h"
#include "kernels/experts.h"

namespace braid {
namespace {

int64_t sum_of(std::span<const int64_t> counts) {
  int64_t sum = 0;
  for (int64_t count : counts) sum += count;
  return sum;
}

// The memory of a tensor planned for more rows, as `rows` of them.
Tensor first_rows(Tensor planned, Shape shape) {
  return Tensor(planned.raw(), planned.dtype(), shape, planned.device());
}

// An order's memory, planned for more tokens, as that of `tokens` with `slots` each.
void resize(ExpertOrder& order, int64_t tokens, int64_t slots) {
  order.row_of_slot = first_rows(order.row_of_slot, {tokens, slots});
  order.slot_of_row = first_rows(order.slot_of_row, {tokens * slots});
}

// The order as seen by tokens of one slot each, which makes a number per pair a row per token.
ExpertOrder per_pair(const ExpertOrder& order) {
  return {order.row_of_slot.view({order.row_of_slot.numel(), 1}), order.slot_of_row, order.rows_per_expert};
}

// Of the tokens from `begin` to `end` alone, to the same rows. For the GPU, where row_of_slot is what counts.
ExpertOrder part_of(const ExpertOrder& order, int64_t begin, int64_t end) {
  const int64_t K = order.row_of_slot.dim(1);
  return {order.row_of_slot.rows(begin, end), order.slot_of_row.rows(begin * K, end * K), order.rows_per_expert};
}

Tensor as_column(const Tensor& tensor) { return tensor.view({tensor.numel(), 1}); }

// Whole numbers of 4 bytes as what gather_rows takes, which copies bits.
Tensor as_float(Tensor ids) { return Tensor(ids.raw(), DType::kF32, ids.shape(), ids.device()); }

}  // namespace

std::vector<ExpertRoute::Round> rounds_of(std::span<const int64_t> rows_per_expert, int64_t max_rows) {
  std::vector<ExpertRoute::Round> rounds = {{0, 0}};
  for (int64_t rows : rows_per_expert) {
    while (rows > 0) {
      const int64_t room = max_rows - rounds.back().num_rows;
      const int64_t taken = rows <= room ? rows : room / kExpertBlockRows * kExpertBlockRows;
      rounds.back().num_rows += taken;
      rows -= taken;
      if (rows > 0) rounds.push_back({rounds.back().first_row + rounds.back().num_rows, 0});
    }
  }
  return rounds;
}

ExpertExchange::ExpertExchange(Communicator& group, int64_t num_experts, int64_t experts_per_token, int64_t max_tokens,
                               double max_rows_factor, std::optional<CopyPlaces> places)
    : group_(group),
      places_(places.value_or(group.gpus_of_one_host() ? CopyPlaces::kFixed : CopyPlaces::kPacked)),
      num_experts_(num_experts),
      experts_per_token_(experts_per_token),
      max_tokens_(max_tokens) {
  check<ConfigError>(num_experts % group.size() == 0, num_experts, " experts cannot be shared evenly by ", group.size(),
                     " ranks");
  check<ConfigError>(max_rows_factor >= 0, "parallel.max_rows_factor is ", max_rows_factor,
                     ", but must not be negative");
  const int64_t mean = max_tokens * experts_per_token, worst = mean * group.size();
  max_rows_ = worst;
  // Compared as numbers before the conversion, which is undefined for a factor that is too large.
  if (const double bound = std::ceil(max_rows_factor * static_cast<double>(mean));
      max_rows_factor > 0 && bound < static_cast<double>(worst))
    max_rows_ = std::min(worst, std::max(static_cast<int64_t>(bound), kExpertBlockRows));
  max_copies_ = max_tokens * group.size();
}

int64_t ExpertExchange::most_ranks_of_a_token() const { return std::min<int64_t>(experts_per_token_, group_.size()); }

int64_t ExpertExchange::num_tokens(const ExpertRoute& route) const {
  return (group_.size() == 1 ? route.order : route.copies).row_of_slot.dim(0);
}

int64_t ExpertExchange::window_bytes() const {
  int64_t sum = 0;
  for (const Lane* lane : {&rows_, &numbers_})
    if (lane->windows) sum += PeerWindows::memory_bytes(lane->windows->bytes());
  return sum;
}

// What a token's sums are the sums of: its rows where they all are on this rank, its copies elsewhere. Rounds leave
// copies, of which a token of a group of one has one.
const ExpertOrder& ExpertExchange::order_of_tokens(const ExpertRoute& route) const {
  return group_.size() == 1 && !route.in_rounds() ? route.order : route.copies;
}

void ExpertExchange::plan_memory(Planner& planner, ExpertRoute& route) const {
  Planner::Scope scope(planner, "route.");
  const int64_t K = experts_per_token_, S = most_ranks_of_a_token();
  if (group_.size() > 1 || !fits_always()) {
    planner.add("place_of_copy", route.copies.row_of_slot, {max_tokens_, S}, DType::kI32);
    planner.add("copy_at_place", route.copies.slot_of_row, {max_tokens_ * S}, DType::kI32);
    planner.add("copies_per_rank", route.copies.rows_per_expert, {group_.size()}, DType::kI64);
  }
  planner.add("row_of_slot", route.order.row_of_slot, {max_copies_, K}, DType::kI32);
  planner.add("slot_of_row", route.order.slot_of_row, {max_copies_ * K}, DType::kI32);
  planner.add("rows_per_expert", route.order.rows_per_expert, {num_local_experts()}, DType::kI64);
}

void ExpertExchange::plan(Context& ctx, ExpertRoute& route, const Tensor& expert_id) {
  const int64_t N = expert_id.dim(0), K = experts_per_token_, El = num_local_experts();
  const int size = group_.size();
  check_shapes({{"expert_id", expert_id, {N, K}}});
  check_dtype(DType::kI32, {{"expert_id", expert_id}});
  check<ShapeError>(N <= max_tokens_, "expert_id: expected at most ", max_tokens_, " tokens, got shape ",
                    expert_id.shape().to_string());
  Scratch scratch(ctx);
  int64_t U = N;
  Tensor ids = expert_id;
  if (size > 1) {
    plan_copies(ctx, route, expert_id);
    U = sum_of(route.recv_rows);
    // Each copy comes with the ids of its token; those that are not of this rank are dropped here.
    if (places_ == CopyPlaces::kFixed && N < max_tokens_) {  // behind the last token nothing is routed
      std::vector<int32_t> none(static_cast<size_t>((max_tokens_ - N) * K), -1);
      ids = scratch.tensor({max_tokens_, K}, DType::kI32);
      copy(ctx, ids.rows(0, N), expert_id);
      copy(ctx, ids.rows(N, max_tokens_), Tensor::of(none.data(), {max_tokens_ - N, K}));
    }
    ids = with_own(ctx, send_to_experts(ctx, scratch, numbers_, as_float(ids), route), as_float(ids));
    wait_for(ctx, numbers_);
    ids = Tensor(ids.raw(), DType::kI32, ids.shape(), ids.device());
    local_expert_ids(ctx, ids, group_.rank() * El, El);
  }
  resize(route.order, U, K);
  expert_order(ctx, route.order, ids);

  route.rounds.clear();
  route.num_rows = std::min(max_rows_, U * K);
  if (ctx.counts_only()) {
    if (waits_for_counts_) begin_rounds(ctx, route, expert_id, {{0, route.num_rows}});
  } else if (!ctx.on_cuda() || waits_for_counts_) {
    plan_rounds(ctx, route, expert_id);
  } else if (!fits_always()) {
    limit_rows(ctx, route.order.rows_per_expert, needed_rows(ctx), max_rows_);
  }
}

// Where the host knows the counts, or waits for them.
void ExpertExchange::plan_rounds(Context& ctx, ExpertRoute& route, const Tensor& expert_id) {
  std::vector<int64_t> rows(static_cast<size_t>(num_local_experts()));
  copy(ctx, Tensor::of(rows.data(), {num_local_experts()}), route.order.rows_per_expert);
  route.num_rows = sum_of(rows);
  if (fits_always()) return;
  int64_t most = route.num_rows;
  group_.all_reduce(ctx, Tensor::of(&most, {1}), ReduceOp::kMax);
  if (most <= max_rows_) return;
  had_rounds_ = true;
  begin_rounds(ctx, route, expert_id, rounds_of(rows, max_rows_));
}

void ExpertExchange::begin_rounds(Context& ctx, ExpertRoute& route, const Tensor& expert_id,
                                  std::vector<ExpertRoute::Round> rounds) {
  route.rounds = std::move(rounds);
  if (group_.size() > 1) return;
  resize(route.copies, expert_id.dim(0), 1);
  token_places(ctx, route.copies.row_of_slot, expert_id, num_experts_, 0, 1);
  fill_zero(ctx, route.copies.rows_per_expert);  // nothing is sorted
}

void ExpertExchange::plan_copies(Context& ctx, ExpertRoute& route, const Tensor& expert_id) {
  const int64_t N = expert_id.dim(0), S = most_ranks_of_a_token(), El = num_local_experts();
  // The memory is that of max_tokens tokens, whatever the last call left as shape.
  resize(route.copies, N, S);
  if (places_ == CopyPlaces::kFixed) {
    token_places(ctx, route.copies.row_of_slot, expert_id, El, max_tokens_, 1);
    fill_zero(ctx, route.copies.rows_per_expert);  // nothing is sorted
    route.send_rows.assign(group_.size(), max_tokens_);
    route.recv_rows = route.send_rows;
    return;
  }
  Scratch scratch(ctx);
  Tensor ranks = scratch.tensor({N, S}, DType::kI32);
  token_places(ctx, ranks, expert_id, El, 1, 0);
  expert_order(ctx, route.copies, ranks);
  if (!ctx.counts_only()) return exchange_counts(ctx, route);
  // What no route exceeds, and all of it travels.
  const int other = (group_.rank() + 1) % group_.size();
  route.send_rows.assign(group_.size(), 0);
  route.recv_rows = route.send_rows;
  route.send_rows[other] = N * S;
  route.recv_rows[other] = max_copies_;
}

// Every rank sends every other its counts of copies, twice as a check. Everybody gets the whole matrix, so everybody
// comes to the same verdict on it and nobody waits for a rank that has given up.
void ExpertExchange::exchange_counts(Context& ctx, ExpertRoute& route) {
  const int size = group_.size(), rank = group_.rank();
  std::vector<int64_t> numbers(static_cast<size_t>(2 * size * size)), copies(static_cast<size_t>(size));
  auto counts = [&](int from, int to) { return numbers.data() + 2 * (int64_t{from} * size + to); };
  copy(ctx, Tensor::of(copies.data(), {size}), route.copies.rows_per_expert);
  for (int r = 0; r < size; ++r) std::fill_n(counts(rank, r), 2, copies[r]);
  Tensor matrix = Tensor::of(numbers.data(), {size, 2 * size});
  group_.all_gather(ctx, matrix, matrix.rows(rank, rank + 1));
  for (int r = 0; r < size; ++r)
    for (int s = 0; s < size; ++s)
      check<CommunicationError>(counts(s, r)[0] == counts(s, r)[1], "expert exchange: rank ", s, " announces ",
                                counts(s, r)[0], " rows for rank ", r, " of the expert group, but repeats ",
                                counts(s, r)[1]);
  route.send_rows.resize(size);
  route.recv_rows.resize(size);
  for (int r = 0; r < size; ++r) {
    route.send_rows[r] = counts(rank, r)[0];
    route.recv_rows[r] = counts(r, rank)[0];
  }
}

Tensor ExpertExchange::needed_rows(Context& ctx) {
  if (!needed_rows_) {
    needed_rows_ = allocate_memory(ctx.device(), sizeof(int64_t));
    check<OutOfMemoryError>(needed_rows_ != nullptr, "no memory left for the expert exchange");
    fill_zero(ctx, Tensor(needed_rows_.get(), DType::kI64, {1}, ctx.device()));
  }
  return Tensor(needed_rows_.get(), DType::kI64, {1}, ctx.device());
}

bool ExpertExchange::rows_were_cut(Context& ctx) {
  if (ctx.counts_only()) {  // every other pass is counted in rounds
    waits_for_counts_ = !waits_for_counts_ && !fits_always();
    return false;
  }
  if (waits_for_counts_) {
    waits_for_counts_ = had_rounds_;
    had_rounds_ = false;
    return false;
  }
  if (!needed_rows_) return false;
  int64_t needed = 0;
  copy(ctx, Tensor::of(&needed, {1}), needed_rows(ctx));
  fill_zero(ctx, needed_rows(ctx));
  group_.all_reduce(ctx, Tensor::of(&needed, {1}), ReduceOp::kMax);
  had_rounds_ = false;
  return waits_for_counts_ = needed > max_rows_;
}

ExpertRoute ExpertExchange::round(Context& ctx, Scratch& scratch, const ExpertRoute& route,
                                  const ExpertRoute::Round& round) const {
  ExpertRoute part = route;
  part.order = {scratch.tensor(route.order.row_of_slot.shape(), DType::kI32),
                scratch.tensor(route.order.slot_of_row.shape(), DType::kI32),
                scratch.tensor(route.order.rows_per_expert.shape(), DType::kI64)};
  window_of_order(ctx, part.order, route.order, round.first_row, round.num_rows);
  part.num_rows = round.num_rows;
  return part;
}

Tensor ExpertExchange::keep(Context& ctx, Scratch& scratch, const Tensor& travelling) const {
  wait_for(ctx, rows_);
  if (!rows_.windows) return travelling;
  Tensor kept = scratch.tensor(travelling.shape(), travelling.dtype());
  for (const auto& [begin, end] : other_places()) copy(ctx, kept.rows(begin, end), travelling.rows(begin, end));
  return kept;
}

Tensor ExpertExchange::zero_sums(Context& ctx, Scratch& scratch, int64_t C, DType activation,
                                 const ExpertRoute& route) const {
  Tensor sums = scratch.tensor({route.order.row_of_slot.dim(0), C}, wide_dtype(activation));
  fill_zero(ctx, sums);
  return sums;
}

Tensor ExpertExchange::start_combine_sums(Context& ctx, Scratch& scratch, const Tensor& sums, DType activation,
                                          const ExpertRoute& route) {
  if (group_.size() == 1) return sums;
  Tensor copies = sums;
  if (activation != sums.dtype()) {
    copies = scratch.tensor(sums.shape(), activation);
    convert(ctx, copies, sums);
  }
  const Tensor returned = send_to_tokens(ctx, scratch, rows_, copies, route);
  if (rows_.windows) copy(ctx, own_places(returned), own_places(copies));
  return returned;
}

Tensor ExpertExchange::zero_gate_sums(Context& ctx, Scratch& scratch, DType wide, const ExpertRoute& route) const {
  Tensor sums = scratch.tensor(route.order.row_of_slot.shape(), wide);
  fill_zero(ctx, sums);
  return sums;
}

void ExpertExchange::add_gates(Context& ctx, Tensor sums, const Tensor& row_gate, const ExpertRoute& round) const {
  add_rows(ctx, as_column(sums), as_column(row_gate), per_pair(round.order));
}

Tensor ExpertExchange::start_return_gate_sums(Context& ctx, Scratch& scratch, const Tensor& sums,
                                              const ExpertRoute& route) {
  if (group_.size() == 1) return sums;
  const Tensor returned = send_to_tokens(ctx, scratch, numbers_, sums, route);
  return numbers_.windows ? with_own(ctx, returned, own_places(sums)) : returned;
}

// The places of this rank's own tokens on it, where places are fixed.
Tensor ExpertExchange::own_places(const Tensor& copies) const {
  return copies.rows(group_.rank() * max_tokens_, (group_.rank() + 1) * max_tokens_);
}

// The places of the other ranks' tokens, which are in front and behind.
std::vector<std::pair<int64_t, int64_t>> ExpertExchange::other_places() const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  if (group_.rank() > 0) ranges.push_back({0, group_.rank() * max_tokens_});
  if (group_.rank() + 1 < group_.size()) ranges.push_back({(group_.rank() + 1) * max_tokens_, max_copies_});
  return ranges;
}

// Numbers in a window, with what the rank keeps to itself.
Tensor ExpertExchange::with_own(Context& ctx, const Tensor& travelling, const Tensor& own) const {
  if (numbers_.windows) copy(ctx, own_places(travelling).rows(0, own.dim(0)), own);
  return travelling;
}

// Null where the GPUs cannot write into each other's memory. Made at the first call, and again if it is too small.
PeerWindows* ExpertExchange::windows(Context& ctx, Lane& lane, int64_t bytes) {
  if (ctx.counts_only() && places_ == CopyPlaces::kFixed && group_.gpus_of_one_host()) {
    if (!lane.windows || lane.windows->bytes() < bytes)
      lane.windows = std::make_unique<CountedWindows>(group_.size(), bytes);
    return lane.windows.get();
  }
  if constexpr (kWithCuda) {
    if (!ctx.on_cuda() || places_ != CopyPlaces::kFixed || !group_.gpus_of_one_host() || lane.none) return nullptr;
    if (!lane.windows || lane.windows->bytes() < bytes) {
      ctx.synchronize();
      group_.barrier(ctx);  // nobody's rows are under way
      lane.windows.reset();
      lane.windows = open_peer_windows(ctx, group_, bytes);
      lane.none = lane.windows == nullptr;
    }
  }
  return lane.windows.get();
}

void ExpertExchange::wait_for(Context& ctx, const Lane& lane) const {
  if (group_.size() == 1) return;
  const OperatorScope scope(ctx, lane.waiting);
  if (lane.windows) lane.windows->wait(ctx);
  else ctx.wait_for(ctx.side());
}

// x (N, C) -> (U, C), a copy of a token's row at each of its places, which is there after wait_for; in a window without
// the places of the rank's own tokens. Alone, a rank's tokens are their copies.
Tensor ExpertExchange::send_to_experts(Context& ctx, Scratch& scratch, Lane& lane, const Tensor& x,
                                       const ExpertRoute& route) {
  if (group_.size() == 1) return x;
  const int64_t N = x.dim(0), C = x.dim(1), size = group_.size();
  if (places_ == CopyPlaces::kFixed) {
    const Shape all = {size * max_tokens_, C};
    if (PeerWindows* window = windows(ctx, lane, all.numel() * size_of(x.dtype())))
      return window->all_gather(ctx, x, max_tokens_);
    Tensor copies = scratch.tensor(all, x.dtype());
    copy(ctx, own_places(copies).rows(0, N), x);
    ctx.side().wait_for(ctx);
    group_.all_gather(ctx.side(), copies, own_places(copies));
    return copies;
  }
  Tensor sent = scratch.tensor({sum_of(route.send_rows), C}, x.dtype());
  Tensor copies = scratch.tensor({sum_of(route.recv_rows), C}, x.dtype());
  gather_rows(ctx, sent, x, route.copies);
  ctx.side().wait_for(ctx);
  group_.all_to_all_rows(ctx.side(), copies, route.recv_rows, sent, route.send_rows);
  return copies;
}

// The way back: copies (U, C) -> what the places of this rank's tokens hold, in the order of route.copies; in a window
// without those on the rank itself.
Tensor ExpertExchange::send_to_tokens(Context& ctx, Scratch& scratch, Lane& lane, const Tensor& copies,
                                      const ExpertRoute& route) {
  if (PeerWindows* window = windows(ctx, lane, copies.bytes())) return window->all_to_all(ctx, copies);
  Tensor returned = scratch.tensor({sum_of(route.send_rows), copies.dim(1)}, copies.dtype());
  ctx.side().wait_for(ctx);
  group_.all_to_all_rows(ctx.side(), returned, route.send_rows, copies, route.recv_rows);
  return returned;
}

void ExpertExchange::dispatch(Context& ctx, Tensor rows, const Tensor& x, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_dispatch(ctx, rows, start_dispatch(ctx, scratch, x, route), x, route);
}

void ExpertExchange::combine(Context& ctx, Tensor y, const Tensor& rows, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_combine(ctx, y, start_combine(ctx, scratch, rows, route), route);
}

Tensor ExpertExchange::start_dispatch(Context& ctx, Scratch& scratch, const Tensor& x, const ExpertRoute& route) {
  if (!starts_before_plan()) check_shapes({{"x", x, {num_tokens(route), x.dim(1)}}});
  return send_to_experts(ctx, scratch, rows_, x, route);
}

void ExpertExchange::finish_dispatch(Context& ctx, Tensor rows, const Tensor& travelling, const Tensor& x,
                                     const ExpertRoute& route) {
  check_shapes({{"rows", rows, {route.num_rows, travelling.dim(1)}}});
  check_dtype(travelling.dtype(), {{"rows", rows}});
  if (!rows_.windows) {
    wait_for(ctx, rows_);
    return gather_rows(ctx, rows, travelling, route.order);
  }
  // The rows of the rank's own tokens come from x, while the others still travel.
  const int64_t first = group_.rank() * max_tokens_;
  gather_rows(ctx, rows, x, part_of(route.order, first, first + x.dim(0)));
  wait_for(ctx, rows_);
  for (const auto& [begin, end] : other_places())
    gather_rows(ctx, rows, travelling.rows(begin, end), part_of(route.order, begin, end));
}

Tensor ExpertExchange::start_combine(Context& ctx, Scratch& scratch, const Tensor& rows, const ExpertRoute& route) {
  check_shapes({{"rows", rows, {route.num_rows, rows.dim(1)}}});
  if (group_.size() == 1) return rows;  // their sums are those of the tokens
  Tensor copies = scratch.tensor({sum_of(route.recv_rows), rows.dim(1)}, rows.dtype());
  if (!windows(ctx, rows_, copies.bytes())) {
    combine_rows(ctx, copies, rows, route.order);
    return send_to_tokens(ctx, scratch, rows_, copies, route);
  }
  // First those of other ranks' tokens; while they travel, the own ones, which have no way to go.
  for (const auto& [begin, end] : other_places())
    combine_rows(ctx, copies.rows(begin, end), rows, part_of(route.order, begin, end));
  const Tensor returned = send_to_tokens(ctx, scratch, rows_, copies, route);
  const int64_t first = group_.rank() * max_tokens_;
  combine_rows(ctx, own_places(returned), rows, part_of(route.order, first, first + max_tokens_));
  return returned;
}

void ExpertExchange::finish_combine(Context& ctx, Tensor y, const Tensor& travelling, const ExpertRoute& route,
                                    Accumulate accumulate) {
  check_shapes({{"y", y, {num_tokens(route), travelling.dim(1)}}});
  if (!route.in_rounds()) check_dtype(y.dtype(), {{"rows", travelling}});
  wait_for(ctx, rows_);
  combine_rows(ctx, y, travelling, order_of_tokens(route), accumulate);
}

void ExpertExchange::dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& gate, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_dispatch_gates(ctx, row_gate, start_dispatch_gates(ctx, scratch, gate, route), route);
}

void ExpertExchange::return_gates(Context& ctx, Tensor gate, const Tensor& row_gate, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_return_gates(ctx, gate, start_return_gates(ctx, scratch, row_gate, route), route);
}

// A token's gates travel as a row of K to every rank of its experts, and there each pair takes its own.
Tensor ExpertExchange::start_dispatch_gates(Context& ctx, Scratch& scratch, const Tensor& gate,
                                            const ExpertRoute& route) {
  check_shapes({{"gate", gate, {num_tokens(route), experts_per_token_}}});
  return with_own(ctx, send_to_experts(ctx, scratch, numbers_, gate, route), gate);
}

void ExpertExchange::finish_dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& travelling,
                                           const ExpertRoute& route) {
  check_shapes({{"row_gate", row_gate, {route.num_rows}}});
  check_dtype(travelling.dtype(), {{"row_gate", row_gate}});
  wait_for(ctx, numbers_);
  gather_rows(ctx, as_column(row_gate), as_column(travelling), per_pair(route.order));
}

// A pair's number comes back in its place of the row of K; the other ranks' rows have 0 there.
Tensor ExpertExchange::start_return_gates(Context& ctx, Scratch& scratch, const Tensor& row_gate,
                                          const ExpertRoute& route) {
  check_shapes({{"row_gate", row_gate, {route.num_rows}}});
  if (group_.size() == 1) return row_gate;
  Tensor copies = scratch.tensor(route.order.row_of_slot.shape(), row_gate.dtype());
  combine_rows(ctx, as_column(copies), as_column(row_gate), per_pair(route.order));
  return start_return_gate_sums(ctx, scratch, copies, route);
}

void ExpertExchange::finish_return_gates(Context& ctx, Tensor gate, const Tensor& travelling,
                                         const ExpertRoute& route) {
  check_shapes({{"gate", gate, {num_tokens(route), experts_per_token_}}});
  check_dtype(gate.dtype(), {{"row_gate", travelling}});
  if (group_.size() == 1 && !route.in_rounds())
    return combine_rows(ctx, as_column(gate), as_column(travelling), per_pair(route.order));
  wait_for(ctx, numbers_);
  combine_rows(ctx, gate, travelling, route.copies);
}

}  // namespace braid
