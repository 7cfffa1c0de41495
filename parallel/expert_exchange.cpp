#include "parallel/expert_exchange.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/copy.h"
#include "kernels/core/profile.h"

namespace braid {
namespace {

int64_t sum_of(const int64_t* counts, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += counts[i];
  return sum;
}

// The order as seen by N * K "tokens" of one slot each, which makes a number per pair a row per token.
ExpertOrder per_pair(const ExpertOrder& order) {
  return {order.row_of_slot.view({order.row_of_slot.numel(), 1}), order.slot_of_row, order.rows_per_expert};
}

// What a profile shows of the transfers: the part that nothing else hides.
void wait_for_transfer(Context& ctx) {
  const OperatorScope scope(ctx, "wait_for_rows");
  ctx.wait_for(ctx.side());
}

Tensor as_column(const Tensor& tensor) { return tensor.view({tensor.numel(), 1}); }

// rows (R, C) <- x (tokens, C), on the ranks that hold the experts. A single rank's pairs are already in the order of
// its experts, and nothing travels.
Tensor start_to_experts(Context& ctx, Communicator& group, Scratch& scratch, const Tensor& x, const ExpertOrder& order,
                        const ExpertRoute& route) {
  if (group.size() == 1) return x;
  const int64_t C = x.dim(1), num_sent = sum_of(route.send_rows.data(), group.size());
  Tensor sent = scratch.tensor({num_sent, C}, x.dtype()), received = scratch.tensor({route.num_rows, C}, x.dtype());
  gather_rows(ctx, sent, x, order);
  ctx.side().wait_for(ctx);
  group.all_to_all_rows(ctx.side(), received, route.recv_rows, sent, route.send_rows);
  return received;
}
void finish_to_experts(Context& ctx, Communicator& group, Tensor rows, const Tensor& travelling,
                       const ExpertOrder& order, const ExpertRoute& route) {
  if (group.size() == 1) return gather_rows(ctx, rows, travelling, order);
  wait_for_transfer(ctx);
  move_row_blocks(ctx, rows, travelling, route.regroup.data(), static_cast<int64_t>(route.regroup.size()));
}

// y (tokens, C) <- rows (R, C), the transpose
Tensor start_to_tokens(Context& ctx, Communicator& group, Scratch& scratch, const Tensor& rows,
                       const ExpertRoute& route) {
  if (group.size() == 1) return rows;
  const int64_t C = rows.dim(1), num_sent = sum_of(route.send_rows.data(), group.size());
  Tensor by_rank = scratch.tensor(rows.shape(), rows.dtype()), returned = scratch.tensor({num_sent, C}, rows.dtype());
  move_row_blocks(ctx, by_rank, rows, route.ungroup.data(), static_cast<int64_t>(route.ungroup.size()));
  ctx.side().wait_for(ctx);
  group.all_to_all_rows(ctx.side(), returned, route.send_rows, by_rank, route.recv_rows);
  return returned;
}
void finish_to_tokens(Context& ctx, Communicator& group, Tensor y, const Tensor& travelling, const ExpertOrder& order) {
  if (group.size() > 1) wait_for_transfer(ctx);
  combine_rows(ctx, y, travelling, order);
}

}  // namespace

ExpertExchange::ExpertExchange(Communicator& group, int64_t num_experts, int64_t experts_per_token, int64_t max_tokens,
                               double max_rows_factor)
    : group_(group), num_experts_(num_experts), experts_per_token_(experts_per_token), max_tokens_(max_tokens) {
  check<ConfigError>(num_experts % group.size() == 0, num_experts, " experts cannot be shared evenly by ", group.size(),
                     " ranks");
  check<ConfigError>(max_rows_factor >= 0, "parallel.max_rows_factor is ", max_rows_factor,
                     ", but must not be negative");
  const int64_t mean = max_tokens * experts_per_token, worst = mean * group.size();
  max_rows_ = worst;
  // Compared as numbers before the conversion, which is undefined for a factor that is too large.
  if (const double bound = std::ceil(max_rows_factor * static_cast<double>(mean));
      max_rows_factor > 0 && bound < static_cast<double>(worst))
    max_rows_ = static_cast<int64_t>(bound);
}

void ExpertExchange::plan_memory(Planner& planner, ExpertRoute& route) const {
  Planner::Scope scope(planner, "route.");
  planner.add("row_of_slot", route.order.row_of_slot, {max_tokens_, experts_per_token_}, DType::kI32);
  planner.add("slot_of_row", route.order.slot_of_row, {max_tokens_ * experts_per_token_}, DType::kI32);
  planner.add("sent_rows_per_expert", route.order.rows_per_expert, {num_experts_}, DType::kI64);
  planner.add("rows_per_expert", route.rows_per_expert, {num_local_experts()}, DType::kI64);
}

void ExpertExchange::plan(Context& ctx, ExpertRoute& route, const Tensor& expert_id) {
  const int64_t N = expert_id.dim(0), K = experts_per_token_, El = num_local_experts();
  const int size = group_.size(), rank = group_.rank();
  check_shapes({{"expert_id", expert_id, {N, K}}});
  check_dtype(DType::kI32, {{"expert_id", expert_id}});
  check<ShapeError>(N <= max_tokens_, "expert_id: expected at most ", max_tokens_, " tokens, got shape ",
                    expert_id.shape().to_string());
  // The memory is that of max_tokens tokens, whatever the last call left as shape.
  ExpertOrder& order = route.order;
  order.row_of_slot = Tensor(order.row_of_slot.raw(), DType::kI32, {N, K}, ctx.device());
  order.slot_of_row = Tensor(order.slot_of_row.raw(), DType::kI32, {N * K}, ctx.device());
  expert_order(ctx, order, expert_id);
  if (size == 1 && ctx.on_cuda()) {
    // The counts stay on the device: every pair has a row, and those of dropped pairs are the last ones, not used.
    route.num_rows = N * K;
    copy(ctx, route.rows_per_expert, order.rows_per_expert);
    return;
  }

  // Row s of the matrix: for every rank r what s sends to each of r's experts, and the sum. Everybody gets the whole
  // matrix, so everybody comes to the same verdict on it and nobody waits for a rank that has given up.
  std::vector<int64_t> sent_rows(static_cast<size_t>(num_experts_)), rows_per_expert(static_cast<size_t>(El));
  std::vector<int64_t> numbers(static_cast<size_t>(size * size * (El + 1)));
  copy(ctx, Tensor::of(sent_rows.data(), {num_experts_}), order.rows_per_expert);
  auto counts = [&](int s, int r) { return numbers.data() + (int64_t{s} * size + r) * (El + 1); };
  for (int r = 0; r < size; ++r) {
    const int64_t* sent = sent_rows.data() + r * El;
    std::copy_n(sent, El, counts(rank, r));
    counts(rank, r)[El] = sum_of(sent, El);
  }
  Tensor matrix = Tensor::of(numbers.data(), {size, size * (El + 1)});
  group_.all_gather(ctx, matrix, matrix.rows(rank, rank + 1));

  for (int r = 0; r < size; ++r) {
    int64_t num_received = 0;
    for (int s = 0; s < size; ++s) {
      const int64_t sum = sum_of(counts(s, r), El), announced = counts(s, r)[El];
      check<CommunicationError>(sum == announced, "expert exchange: rank ", s, " announces ", announced,
                                " rows for rank ", r, " of the expert group, but its counts per expert add up to ",
                                sum);
      num_received += sum;
    }
    check<CommunicationError>(num_received <= max_rows_, "expert exchange: rank ", r,
                              " of the expert group would receive ", num_received, " rows, more than its room for ",
                              max_rows_, "; raise parallel.max_rows_factor, or set it to 0");
  }

  route.send_rows.resize(size);
  route.recv_rows.resize(size);
  std::vector<int64_t> next(static_cast<size_t>(size));  // first row of rank s that is not regrouped yet
  route.num_rows = 0;
  for (int r = 0; r < size; ++r) {
    route.send_rows[r] = counts(rank, r)[El];
    route.recv_rows[r] = counts(r, rank)[El];
    next[r] = route.num_rows;
    route.num_rows += route.recv_rows[r];
  }
  route.regroup.clear();
  route.ungroup.clear();
  int64_t to = 0;
  for (int64_t e = 0; e < El; ++e) {
    const int64_t first = to;
    for (int s = 0; s < size; ++s) {
      const int64_t rows = counts(s, rank)[e];
      if (rows == 0) continue;
      route.regroup.push_back({to, next[s], rows});
      route.ungroup.push_back({next[s], to, rows});
      next[s] += rows;
      to += rows;
    }
    rows_per_expert[e] = to - first;
  }
  copy(ctx, route.rows_per_expert, Tensor::of(rows_per_expert.data(), {El}));
}

void ExpertExchange::dispatch(Context& ctx, Tensor rows, const Tensor& x, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_dispatch(ctx, rows, start_dispatch(ctx, scratch, x, route), route);
}

void ExpertExchange::combine(Context& ctx, Tensor y, const Tensor& rows, const ExpertRoute& route) {
  Scratch scratch(ctx);
  finish_combine(ctx, y, start_combine(ctx, scratch, rows, route), route);
}

Tensor ExpertExchange::start_dispatch(Context& ctx, Scratch& scratch, const Tensor& x, const ExpertRoute& route) {
  check_shapes({{"x", x, {route.order.row_of_slot.dim(0), x.dim(1)}}});
  return start_to_experts(ctx, group_, scratch, x, route.order, route);
}

void ExpertExchange::finish_dispatch(Context& ctx, Tensor rows, const Tensor& travelling, const ExpertRoute& route) {
  check_shapes({{"rows", rows, {route.num_rows, travelling.dim(1)}}});
  check_dtype(travelling.dtype(), {{"rows", rows}});
  finish_to_experts(ctx, group_, rows, travelling, route.order, route);
}

Tensor ExpertExchange::start_combine(Context& ctx, Scratch& scratch, const Tensor& rows, const ExpertRoute& route) {
  check_shapes({{"rows", rows, {route.num_rows, rows.dim(1)}}});
  return start_to_tokens(ctx, group_, scratch, rows, route);
}

void ExpertExchange::finish_combine(Context& ctx, Tensor y, const Tensor& travelling, const ExpertRoute& route) {
  check_shapes({{"y", y, {route.order.row_of_slot.dim(0), travelling.dim(1)}}});
  check_dtype(y.dtype(), {{"rows", travelling}});
  finish_to_tokens(ctx, group_, y, travelling, route.order);
}

void ExpertExchange::dispatch_gates(Context& ctx, Tensor row_gate, const Tensor& gate, const ExpertRoute& route) {
  check_shapes({{"row_gate", row_gate, {route.num_rows}}, {"gate", gate, route.order.row_of_slot.shape()}});
  check_dtype(gate.dtype(), {{"row_gate", row_gate}});
  Scratch scratch(ctx);
  const ExpertOrder order = per_pair(route.order);
  finish_to_experts(ctx, group_, as_column(row_gate),
                    start_to_experts(ctx, group_, scratch, as_column(gate), order, route), order, route);
}

void ExpertExchange::return_gates(Context& ctx, Tensor gate, const Tensor& row_gate, const ExpertRoute& route) {
  check_shapes({{"gate", gate, route.order.row_of_slot.shape()}, {"row_gate", row_gate, {route.num_rows}}});
  check_dtype(gate.dtype(), {{"row_gate", row_gate}});
  Scratch scratch(ctx);
  finish_to_tokens(ctx, group_, as_column(gate), start_to_tokens(ctx, group_, scratch, as_column(row_gate), route),
                   per_pair(route.order));
}

}  // namespace braid
