#include "parallel/expert_exchange.h"

#include <numeric>

#include "kernels/experts.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kNumExperts = 8, kPerToken = 3, kMaxTokens = 16, kWidth = 5;

// The tokens of a rank of the world, which every rank can compute: how many there are and where they go.
struct Tokens {
  std::function<int64_t(int rank)> count;
  std::function<int32_t(int rank, int64_t n, int64_t k)> expert;

  Tensor expert_id(int rank) const {
    Tensor id = allocate({count(rank), kPerToken}, DType::kI32);
    for (int64_t i = 0; i < id.numel(); ++i) id.data<int32_t>()[i] = expert(rank, i / kPerToken, i % kPerToken);
    return id;
  }
};

// Different numbers of tokens, some slots without an expert, experts with many rows and with none.
const Tokens kUneven = {[](int rank) { return (3 + int64_t{5} * rank) % (kMaxTokens + 1); },
                        [](int rank, int64_t n, int64_t k) {
                          const int64_t expert = (int64_t{7} * rank + 13 * n + 5 * k + 3 * n * k) % 9 - 1;
                          return static_cast<int32_t>(expert == 5 ? 2 : expert);
                        }};
const Tokens kEveryOtherRankHasNone = {[](int rank) { return int64_t{rank % 2 == 0 ? 0 : 7}; }, kUneven.expert};
const Tokens kAllToTheLastExpert = {[](int) { return kMaxTokens; },
                                    [](int, int64_t, int64_t) { return int32_t{kNumExperts - 1}; }};
const Tokens kNobodyRoutes = {[](int) { return int64_t{4}; }, [](int, int64_t, int64_t) { return int32_t{-1}; }};

const std::pair<const char*, const Tokens*> kCases[] = {{"uneven", &kUneven},
                                                        {"every other rank has none", &kEveryOtherRankHasNone},
                                                        {"all to the last expert", &kAllToTheLastExpert},
                                                        {"nobody routes", &kNobodyRoutes}};

// An exchange with the memory of one route.
struct Planned {
  ExpertExchange exchange;
  ExpertRoute route;
  Arena memory;

  explicit Planned(Communicator& group, CopyPlaces places = CopyPlaces::kPacked, double max_rows_factor = 0,
                   int64_t max_tokens = kMaxTokens)
      : exchange(group, kNumExperts, kPerToken, max_tokens, max_rows_factor, places) {
    Planner planner;
    exchange.plan_memory(planner, route);
    memory = Arena("the routes of a test", planner);
  }
};

// Runs body once with every size of the expert group that the number of ranks allows, and either way to place copies.
void for_every_group(const std::function<void(Communicator&, CopyPlaces)>& body) {
  for (int EP = 1; EP <= world().size(); EP *= 2) {
    const auto group = world().split(world().rank() / EP);
    for (const CopyPlaces places : {CopyPlaces::kPacked, CopyPlaces::kFixed}) {
      SCOPED_TRACE(concat("EP = ", EP, places == CopyPlaces::kPacked ? ", packed" : ", fixed places"));
      body(*group, places);
    }
  }
}

// World rank of a member of this rank's expert group.
int world_rank(const Communicator& group, int member) { return world().rank() / group.size() * group.size() + member; }

double element(int rank, int64_t n, int64_t c) { return 1000.0 * (rank + 1) + 10.0 * n + c; }

Tensor coded_rows(int rank, int64_t count) {
  Tensor x = allocate({count, kWidth}, DType::kF64);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<double>()[i] = element(rank, i / kWidth, i % kWidth);
  return x;
}

// Whole numbers, so that sums are exact in any order.
Tensor whole_numbers(Shape shape, uint64_t seed) {
  Tensor x = uniform_f64(shape, -50, 50, seed);
  for (int64_t i = 0; i < x.numel(); ++i) x.data<double>()[i] = std::round(x.data<double>()[i]);
  return x;
}

double sum_over_ranks(double value) {
  Context ctx = Context::cpu();
  Tensor sum = tensor_of<double>({value}, {1});
  world().all_reduce(ctx, sum, ReduceOp::kSum);
  return sum.data<double>()[0];
}

TEST(ExpertExchange, RowsAscendByExpertThenRankThenTokenThenSlot) {
  Context ctx = Context::cpu();
  for_every_group([&](Communicator& group, CopyPlaces places) {
    Planned p(group, places);  // one route for all cases: N grows and shrinks
    for (const auto& [name, tokens] : kCases) {
      SCOPED_TRACE(name);
      const int rank = world().rank();
      p.exchange.plan(ctx, p.route, tokens->expert_id(rank));
      const int64_t El = p.exchange.num_local_experts();
      ASSERT_EQ(El, kNumExperts / group.size());

      std::vector<double> expected, expected_gate;
      std::vector<int64_t> rows_per_expert(El);
      for (int64_t e = 0; e < El; ++e) {
        for (int s = 0; s < group.size(); ++s) {
          const int source = world_rank(group, s);
          for (int64_t i = 0; i < tokens->count(source) * kPerToken; ++i) {
            const int64_t n = i / kPerToken, k = i % kPerToken;
            if (tokens->expert(source, n, k) != group.rank() * El + e) continue;
            for (int64_t c = 0; c < kWidth; ++c) expected.push_back(element(source, n, c));
            expected_gate.push_back(element(source, n, k));
            ++rows_per_expert[e];
          }
        }
      }
      const int64_t R = static_cast<int64_t>(expected_gate.size());
      ASSERT_EQ(p.route.num_rows, R);
      expect_same_bits(p.route.rows_per_expert(), tensor_of(rows_per_expert, {El}));
      EXPECT_LE(R, p.exchange.max_rows());

      Tensor rows = poisoned({R, kWidth}, DType::kF64), row_gate = poisoned({R}, DType::kF64);
      p.exchange.dispatch(ctx, rows, coded_rows(rank, tokens->count(rank)), p.route);
      expect_same_bits(rows, tensor_of(expected, {R, kWidth}), "rows");

      Tensor gate = allocate({tokens->count(rank), kPerToken}, DType::kF64);
      for (int64_t i = 0; i < gate.numel(); ++i) gate.data<double>()[i] = element(rank, i / kPerToken, i % kPerToken);
      p.exchange.dispatch_gates(ctx, row_gate, gate, p.route);
      expect_same_bits(row_gate, tensor_of(expected_gate, {R}), "row_gate");

      // Every gate comes back to its place; a dropped pair gets 0.
      Tensor returned = poisoned(gate.shape(), DType::kF64);
      p.exchange.return_gates(ctx, returned, row_gate, p.route);
      for (int64_t i = 0; i < gate.numel(); ++i) {
        if (tokens->expert(rank, i / kPerToken, i % kPerToken) < 0) gate.data<double>()[i] = 0;
      }
      expect_same_bits(returned, gate, "returned gates");
    }
  });
}

TEST(ExpertExchange, ExpertsThatDoNothingReturnTheInput) {
  Context ctx = Context::cpu();
  const Tokens all_routed = {kUneven.count, [](int rank, int64_t n, int64_t k) {
                               return static_cast<int32_t>((rank + 5 * n + 3 * k) % kNumExperts);
                             }};
  for_every_group([&](Communicator& group, CopyPlaces places) {
    const int rank = world().rank();
    const int64_t N = all_routed.count(rank);
    Planned p(group, places);
    p.exchange.plan(ctx, p.route, all_routed.expert_id(rank));
    const Tensor x = coded_rows(rank, N);
    Tensor gate = allocate({N, kPerToken}, DType::kF64);
    for (int64_t i = 0; i < gate.numel(); ++i) gate.data<double>()[i] = i % kPerToken == 0 ? 0.5 : 0.25;
    const int64_t R = p.route.num_rows;
    Tensor rows = poisoned({R, kWidth}, DType::kF64), row_gate = poisoned({R}, DType::kF64);
    p.exchange.dispatch(ctx, rows, x, p.route);
    p.exchange.dispatch_gates(ctx, row_gate, gate, p.route);
    for (int64_t i = 0; i < rows.numel(); ++i) rows.data<double>()[i] *= row_gate.data<double>()[i / kWidth];
    Tensor y = poisoned(x.shape(), DType::kF64);
    p.exchange.combine(ctx, y, rows, p.route);
    expect_same_bits(y, x);
  });
}

TEST(ExpertExchangeGradient, CombineIsTheTransposeOfDispatch) {
  Context ctx = Context::cpu();
  for_every_group([&](Communicator& group, CopyPlaces places) {
    Planned p(group, places);
    for (const auto& [name, tokens] : kCases) {
      SCOPED_TRACE(name);
      const int rank = world().rank();
      const int64_t N = tokens->count(rank);
      p.exchange.plan(ctx, p.route, tokens->expert_id(rank));
      const int64_t R = p.route.num_rows;
      const Tensor x = whole_numbers({N, kWidth}, 1 + rank), r = whole_numbers({R, kWidth}, 11 + rank);
      Tensor dispatched = poisoned(r.shape(), DType::kF64), combined = poisoned(x.shape(), DType::kF64);
      p.exchange.dispatch(ctx, dispatched, x, p.route);
      p.exchange.combine(ctx, combined, r, p.route);
      EXPECT_EQ(sum_over_ranks(dot(dispatched, r)), sum_over_ranks(dot(x, combined)));

      const Tensor gate = whole_numbers({N, kPerToken}, 21 + rank), q = whole_numbers({R}, 31 + rank);
      Tensor row_gate = poisoned(q.shape(), DType::kF64), returned = poisoned(gate.shape(), DType::kF64);
      p.exchange.dispatch_gates(ctx, row_gate, gate, p.route);
      p.exchange.return_gates(ctx, returned, q, p.route);
      EXPECT_EQ(sum_over_ranks(dot(row_gate, q)), sum_over_ranks(dot(gate, returned)));
    }
  });
}

// A token's row travels once to every rank that holds one of its experts, whatever the number of experts there.
TEST(ExpertExchange, SendsATokenOncePerRank) {
  Context ctx = Context::cpu();
  for_every_group([&](Communicator& group, CopyPlaces places) {
    if (group.size() == 1) return;
    Planned p(group, places);
    for (const auto& [name, tokens] : kCases) {
      SCOPED_TRACE(name);
      auto num_copies = [&](int from, int to) {
        if (places == CopyPlaces::kFixed) return kMaxTokens;
        int64_t count = 0;
        for (int64_t n = 0; n < tokens->count(world_rank(group, from)); ++n) {
          bool goes = false;
          for (int64_t k = 0; k < kPerToken; ++k) {
            const int64_t expert = tokens->expert(world_rank(group, from), n, k);
            goes |= expert >= 0 && expert / p.exchange.num_local_experts() == to;
          }
          count += goes;
        }
        return count;
      };
      p.exchange.plan(ctx, p.route, tokens->expert_id(world().rank()));
      for (int r = 0; r < group.size(); ++r) {
        EXPECT_EQ(p.route.send_rows[r], num_copies(group.rank(), r));
        EXPECT_EQ(p.route.recv_rows[r], num_copies(r, group.rank()));
      }
    }
  });
}

// The same tokens with all experts on one rank: same rows in the same order for every expert. A token's rows are added
// on each rank in slot order, and those sums in rank order.
TEST(ExpertExchange, SameBitsForEveryExpertGroupSize) {
  Context ctx = Context::cpu();
  const auto local = make_local_communicator();
  auto inputs = [](int rank, int64_t count) { return random_normal({count, kWidth}, DType::kF32, 40 + rank); };
  auto apply_experts = [](Tensor rows, const Tensor& rows_per_expert, int64_t first_expert) {
    int64_t i = 0;
    for (int64_t e = 0; e < rows_per_expert.numel(); ++e) {
      for (const int64_t end = i + rows_per_expert.data<int64_t>()[e] * kWidth; i < end; ++i)
        rows.data<float>()[i] *= 1.0f / (1 + first_expert + e);
    }
  };
  for_every_group([&](Communicator& group, CopyPlaces places) {
    for (const auto& [name, tokens] : kCases) {
      SCOPED_TRACE(name);
      const int rank = world().rank();
      // What one rank with the tokens of the whole group computes.
      std::vector<int32_t> all_ids;
      std::vector<float> all_inputs;
      int64_t own_begin = 0;
      for (int s = 0; s < group.size(); ++s) {
        const int source = world_rank(group, s);
        const Tensor id = tokens->expert_id(source), x = inputs(source, tokens->count(source));
        if (s < group.rank()) own_begin += tokens->count(source);
        all_ids.insert(all_ids.end(), id.data<int32_t>(), id.data<int32_t>() + id.numel());
        all_inputs.insert(all_inputs.end(), x.data<float>(), x.data<float>() + x.numel());
      }
      const int64_t all_tokens = static_cast<int64_t>(all_ids.size()) / kPerToken;
      Planned whole(*local, CopyPlaces::kPacked, 0, kMaxTokens * group.size());
      whole.exchange.plan(ctx, whole.route, tensor_of(all_ids, {all_tokens, kPerToken}));
      Tensor whole_rows = poisoned({whole.route.num_rows, kWidth}, DType::kF32);
      Tensor whole_y = poisoned({all_tokens, kWidth}, DType::kF32);
      whole.exchange.dispatch(ctx, whole_rows, tensor_of(all_inputs, {all_tokens, kWidth}), whole.route);

      Planned part(group, places);
      part.exchange.plan(ctx, part.route, tokens->expert_id(rank));
      Tensor rows = poisoned({part.route.num_rows, kWidth}, DType::kF32);
      Tensor y = poisoned({tokens->count(rank), kWidth}, DType::kF32);
      part.exchange.dispatch(ctx, rows, inputs(rank, tokens->count(rank)), part.route);

      const int64_t El = part.exchange.num_local_experts();
      const int64_t* whole_counts = whole.route.rows_per_expert().data<int64_t>();
      const int64_t first_row = std::accumulate(whole_counts, whole_counts + group.rank() * El, int64_t{0});
      expect_same_bits(rows, whole_rows.rows(first_row, first_row + part.route.num_rows), "rows");

      apply_experts(whole_rows, whole.route.rows_per_expert(), 0);
      apply_experts(rows, part.route.rows_per_expert(), group.rank() * El);
      part.exchange.combine(ctx, y, rows, part.route);
      const int32_t* row_of_slot = whole.route.order.row_of_slot.data<int32_t>();
      for (int64_t i = 0; i < all_tokens * kWidth; ++i) {
        float& sum = whole_y.data<float>()[i] = 0;
        for (int r = 0; r < group.size(); ++r) {
          float of_rank = 0;
          for (int64_t slot = i / kWidth * kPerToken; slot < (i / kWidth + 1) * kPerToken; ++slot) {
            if (all_ids[slot] >= 0 && all_ids[slot] / El == r)
              of_rank += whole_rows.data<float>()[row_of_slot[slot] * kWidth + i % kWidth];
          }
          sum += of_rank;
        }
      }
      expect_same_bits(y, whole_y.rows(own_begin, own_begin + tokens->count(rank)), "y");
    }
  });
}

TEST(ExpertExchange, SameBitsForEveryThreadCount) {
  for_every_group([&](Communicator& group, CopyPlaces places) {
    expect_same_bits_for_every_thread_count([&] {
      Context ctx = Context::cpu();
      Planned p(group, places);
      const int rank = world().rank();
      p.exchange.plan(ctx, p.route, kUneven.expert_id(rank));
      Tensor rows = poisoned({p.route.num_rows, kWidth}, DType::kF32);
      Tensor y = poisoned({kUneven.count(rank), kWidth}, DType::kF32);
      p.exchange.dispatch(ctx, rows, random_normal(y.shape(), DType::kF32, rank), p.route);
      p.exchange.combine(ctx, y, rows, p.route);
      return std::vector<Tensor>{rows, y};
    });
  });
}

TEST(ExpertExchange, TheBoundOnRowsIsAMultipleOfTheMeanUpToTheWorstCase) {
  const auto group = world().split(0);
  const int64_t mean = kMaxTokens * kPerToken, worst = mean * group->size();
  auto max_rows = [&](double factor) {
    return ExpertExchange(*group, kNumExperts, kPerToken, kMaxTokens, factor).max_rows();
  };
  EXPECT_EQ(max_rows(0), worst);
  EXPECT_EQ(max_rows(1e30), worst);
  EXPECT_EQ(max_rows(0.5), std::min(worst, kExpertBlockRows));  // a block always fits
  auto many = [&](double factor) {
    return ExpertExchange(*group, kNumExperts, kPerToken, 1001, 100 * factor).max_rows();
  };
  EXPECT_EQ(many(0), 3003 * group->size());
  const auto local = make_local_communicator();
  EXPECT_EQ(ExpertExchange(*local, kNumExperts, kPerToken, 5001, 0.5).max_rows(), 7502);  // 7501.5 rounded up
}

TEST(ExpertExchange, RoundsHoldWholeExpertsOrWholeBlocksOfOne) {
  auto text = [](const std::vector<int64_t>& rows, int64_t max_rows) {
    std::string text;
    for (const auto& [first, num] : rounds_of(rows, max_rows)) text += concat(first, "+", num, " ");
    return text;
  };
  EXPECT_EQ(text({}, 5000), "0+0 ");
  EXPECT_EQ(text({0, 0}, 5000), "0+0 ");
  EXPECT_EQ(text({3, 2, 0, 5}, 5), "0+5 5+5 ");
  EXPECT_EQ(text({3, 4, 1}, 5), "0+3 3+5 ");
  EXPECT_EQ(text({5000, 1}, 5000), "0+5000 5000+1 ");
  EXPECT_EQ(text({5001, 1}, 5000), "0+4096 4096+906 ");
  EXPECT_EQ(text({900, 9000, 7}, 5000), "0+4996 4996+4911 ");
  EXPECT_EQ(text({10000, 0, 3}, 4096), "0+4096 4096+4096 8192+1811 ");
}

// More rows than buffers hold: those of the rounds are, one behind the other, those of one exchange, and what comes
// back has the same bits.
TEST(ExpertExchange, RowsInRoundsAreTheSameRows) {
  Context ctx = Context::cpu();
  constexpr int64_t kTokens = 3001;
  const Tokens all_to_the_last = {[](int) { return kTokens; }, kAllToTheLastExpert.expert};
  const Tokens first_three = {[](int rank) { return kTokens - rank; },
                              [](int, int64_t n, int64_t k) { return static_cast<int32_t>(n % 5 == 3 ? -1 : k); }};
  for_every_group([&](Communicator& group, CopyPlaces places) {
    Planned whole(group, places, 0, kTokens), part(group, places, 0.1, kTokens);
    EXPECT_EQ(part.exchange.max_rows(), kExpertBlockRows);
    for (const Tokens* tokens : {&all_to_the_last, &first_three}) {
      const int rank = world().rank();
      const int64_t N = tokens->count(rank);
      const Tensor id = tokens->expert_id(rank), x = random_normal({N, kWidth}, DType::kF32, 50 + rank);
      const Tensor gate = random_normal({N, kPerToken}, DType::kF32, 60 + rank);
      whole.exchange.plan(ctx, whole.route, id);
      part.exchange.plan(ctx, part.route, id);
      EXPECT_FALSE(whole.route.in_rounds());
      ASSERT_TRUE(part.route.in_rounds());  // on every rank, though only one has many rows
      const int64_t R = whole.route.num_rows;
      ASSERT_EQ(part.route.num_rows, R);
      if (R == 0) EXPECT_EQ(part.route.rounds.size(), 1u);
      else EXPECT_GT(part.route.rounds.size(), 1u);

      Tensor rows = poisoned({R, kWidth}, DType::kF32), row_gate = poisoned({R}, DType::kF32);
      whole.exchange.dispatch(ctx, rows, x, whole.route);
      whole.exchange.dispatch_gates(ctx, row_gate, gate, whole.route);
      const Tensor before = random_normal(x.shape(), DType::kF32, 70 + rank);
      Tensor y = copy_of(before), returned = poisoned(gate.shape(), DType::kF32);
      {
        Scratch scratch(ctx);
        whole.exchange.finish_combine(ctx, y, whole.exchange.start_combine(ctx, scratch, rows, whole.route),
                                      whole.route, Accumulate::kYes);
      }
      whole.exchange.return_gates(ctx, returned, row_gate, whole.route);

      Scratch scratch(ctx);
      ExpertExchange& e = part.exchange;
      const Tensor travelling = e.start_dispatch(ctx, scratch, x, part.route);
      const Tensor travelling_gates = e.start_dispatch_gates(ctx, scratch, gate, part.route);
      Tensor sums = e.zero_sums(ctx, scratch, kWidth, DType::kF32, part.route);
      Tensor gate_sums = e.zero_gate_sums(ctx, scratch, DType::kF32, part.route);
      int64_t first = 0;
      for (const ExpertRoute::Round& round : part.route.rounds) {
        const ExpertRoute route = e.round(ctx, scratch, part.route, round);
        Tensor some = poisoned({round.num_rows, kWidth}, DType::kF32),
               some_gate = poisoned({round.num_rows}, DType::kF32);
        e.finish_dispatch(ctx, some, travelling, x, route);
        e.finish_dispatch_gates(ctx, some_gate, travelling_gates, route);
        const int64_t* counts = route.rows_per_expert().data<int64_t>();
        EXPECT_EQ(std::accumulate(counts, counts + e.num_local_experts(), int64_t{0}), round.num_rows);
        EXPECT_EQ(round.first_row, first);
        expect_same_bits(some, rows.rows(first, first + round.num_rows), "rows");
        expect_same_bits(some_gate, row_gate.rows(first, first + round.num_rows), "gates");
        first += round.num_rows;
        add_rows(ctx, sums, some, route.order);
        e.add_gates(ctx, gate_sums, some_gate, route);
      }
      EXPECT_EQ(first, R);
      Tensor y_in_rounds = copy_of(before), returned_in_rounds = poisoned(gate.shape(), DType::kF32);
      const Tensor returning = e.start_combine_sums(ctx, scratch, sums, DType::kF32, part.route);
      e.finish_combine(ctx, y_in_rounds, returning, part.route, Accumulate::kYes);
      const Tensor returning_gates = e.start_return_gate_sums(ctx, scratch, gate_sums, part.route);
      e.finish_return_gates(ctx, returned_in_rounds, returning_gates, part.route);
      expect_same_bits(y_in_rounds, y, "y");
      expect_same_bits(returned_in_rounds, returned, "returned gates");
    }
    // Few rows again: none of it is left.
    part.exchange.plan(ctx, part.route, kUneven.expert_id(world().rank()));
    EXPECT_FALSE(part.route.in_rounds());
  });
}

// Damages what the ranks tell each other about their counts.
class DamagedCounts final : public Communicator {
 public:
  DamagedCounts(Communicator& group, int64_t position) : group_(group), position_(position) {}
  int rank() const override { return group_.rank(); }
  int size() const override { return group_.size(); }
  void all_gather(Context& ctx, Tensor full, const Tensor& shard) override {
    group_.all_gather(ctx, full, shard);
    full.data<int64_t>()[position_] ^= 4;
  }
  void all_reduce(Context& ctx, Tensor x, ReduceOp op) override { group_.all_reduce(ctx, x, op); }
  void reduce_scatter(Context& ctx, Tensor shard, const Tensor& full, ReduceOp op) override {
    group_.reduce_scatter(ctx, shard, full, op);
  }
  void all_to_all_rows(Context& ctx, Tensor recv, std::span<const int64_t> recv_rows, const Tensor& send,
                       std::span<const int64_t> send_rows) override {
    group_.all_to_all_rows(ctx, recv, recv_rows, send, send_rows);
  }
  void broadcast(Context& ctx, Tensor x, int root) override { group_.broadcast(ctx, x, root); }
  void barrier(Context& ctx) override { group_.barrier(ctx); }
  std::unique_ptr<Communicator> split(int color) override { return group_.split(color); }

 private:
  Communicator& group_;
  int64_t position_;
};

TEST(ExpertExchange, AFlippedCountNamesTheTwoRanks) {
  Context ctx = Context::cpu();
  for_every_group([&](Communicator& group, CopyPlaces places) {
    const int EP = group.size();
    if (EP == 1 || places == CopyPlaces::kFixed) return;  // no counts travel
    for (int64_t position = 0; position < 2 * EP * EP; ++position) {
      DamagedCounts damaged(group, position);
      Planned p(damaged);
      const std::string message =
          message_of<CommunicationError>([&] { p.exchange.plan(ctx, p.route, kUneven.expert_id(world().rank())); });
      const int64_t from = position / (2 * EP), to = position / 2 % EP;
      EXPECT_EQ(message.rfind(concat("expert exchange: rank ", from, " announces "), 0), 0u) << message;
      EXPECT_NE(message.find(concat(" rows for rank ", to, " of the expert group, but repeats ")), std::string::npos)
          << message;
    }
  });
}

TEST(ExpertExchange, NamesWhatDoesNotFit) {
  Context ctx = Context::cpu();
  const auto local = make_local_communicator(), group = world().split(0);
  if (world().size() > 1) {
    EXPECT_EQ(message_of<ConfigError>([&] { ExpertExchange(*group, 9, kPerToken, kMaxTokens, 0); }),
              concat("9 experts cannot be shared evenly by ", world().size(), " ranks"));
  }
  EXPECT_EQ(message_of<ConfigError>([&] { ExpertExchange(*local, 8, kPerToken, kMaxTokens, -1.5); }),
            "parallel.max_rows_factor is -1.5, but must not be negative");

  Planned p(*local);
  auto plan = [&](const Tensor& id) { p.exchange.plan(ctx, p.route, id); };
  EXPECT_EQ(message_of<ShapeError>([&] {
              plan(zeros({4, 2}, DType::kI32));
            }),
            "expert_id: expected shape (4, 3), got (4, 2)");
  EXPECT_EQ(message_of<ShapeError>([&] {
              plan(zeros({17, 3}, DType::kI32));
            }),
            "expert_id: expected at most 16 tokens, got shape (17, 3)");
  EXPECT_EQ(message_of<DTypeError>([&] {
              plan(zeros({4, 3}, DType::kI64));
            }),
            "expert_id: expected dtype I32, got I64");

  plan(zeros({4, 3}, DType::kI32));
  Tensor rows = zeros_f64({12, 5}), x = zeros_f64({4, 5}), gate = zeros_f64({4, 3}), row_gate = zeros_f64({12});
  Tensor f32 = zeros({4, 5}, DType::kF32), short_rows = zeros_f64({11, 5}), short_gate = zeros_f64({11});
  EXPECT_EQ(message_of<ShapeError>([&] { p.exchange.dispatch(ctx, short_rows, x, p.route); }),
            "rows: expected shape (12, 5), got (11, 5)");
  EXPECT_EQ(message_of<ShapeError>([&] { p.exchange.combine(ctx, x, short_rows, p.route); }),
            "rows: expected shape (12, 5), got (11, 5)");
  EXPECT_EQ(message_of<DTypeError>([&] { p.exchange.combine(ctx, f32, rows, p.route); }),
            "rows: expected dtype F32, got F64");
  EXPECT_EQ(message_of<DTypeError>([&] { p.exchange.dispatch(ctx, rows, f32, p.route); }),
            "rows: expected dtype F32, got F64");
  EXPECT_EQ(message_of<ShapeError>([&] { p.exchange.dispatch_gates(ctx, short_gate, gate, p.route); }),
            "row_gate: expected shape (12), got (11)");
  EXPECT_EQ(message_of<ShapeError>([&] { p.exchange.return_gates(ctx, x, row_gate, p.route); }),
            "gate: expected shape (4, 3), got (4, 5)");
}

}  // namespace
}  // namespace braid
