#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "kernels/core/philox.h"

namespace braid::cases {
namespace {

using enum Storage;
using Ids = std::vector<int64_t>;

void declare(Trial& t, const Ids& ids, int64_t V, int64_t C) {
  const int64_t N = std::ssize(ids);
  Ids distinct = ids;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const double row = double(C) * double(size_of(t.activation())),
               wide_row = double(C) * double(size_of(wide_dtype(t.activation())));
  const double used = double(distinct.size());

  const Var tokens = t.input("ids", {N}, ids), table = t.input("table", {V, C}, normal());
  const Var y = t.output("y", {N, C}, kActivation, kExact);
  t.forward("embedding_forward", {y}, [=](Context& ctx) { embedding_forward(ctx, y, tokens, table); },
            {.bytes = (double(N) + used) * row});
  const Var d_y = t.input("d_y", {N, C}, normal()), d_table = t.sum("d_table", {V, C}, kWide, kWideSum);
  t.backward("embedding_backward", {d_table}, [=](Context& ctx) { embedding_backward(ctx, d_table, d_y, tokens); },
             {.bytes = double(N) * row + 2 * used * wide_row});
  t.loss(y, d_y);
  t.gradient(table, d_table);
}

// Some ids often, some never, every ninth token without one.
Ids some_ids(int64_t N, int64_t V) {
  Ids ids;
  for (int64_t n = 0; n < N; ++n) ids.push_back(n % 9 == 4 ? -1 : n % 3 == 0 ? V - 1 : n * n % V);
  return ids;
}

// As uneven as those of text: density 1 / rank, ranks spread over the table.
Ids text_like_ids(int64_t N, int64_t V) {
  Ids ids;
  for (int64_t n = 0; n < N; ++n) {
    const auto bits = philox(1, 2, static_cast<uint64_t>(n));
    ids.push_back(static_cast<int64_t>(std::pow(double(V), unit_interval(bits[0], bits[1]))) * 7919 % V);
  }
  return ids;
}

Variant of(const std::string& label, Ids ids, int64_t V, int64_t C) {
  return {label, [=](Trial& t) { declare(t, ids, V, C); }};
}

Variants hard() {
  Variants variants;
  struct Size {
    int64_t N, V, C;
  };
  // One token; a run of thousands; the real width and vocabulary; rows without vectors; no tokens.
  for (const auto& [N, V, C] : {Size{20, 6, 3},
                                {1, 3, 16},
                                {9000, 2, 40},
                                {700, 151936, 8},
                                {500, 300, 2048},
                                {900, 50, 37},
                                {63, 7, 64},
                                {64, 65, 130},
                                {65, 1, 1},
                                {0, 3, 2}})
    variants.push_back(of(concat(N, " x ", C, " of ", V), some_ids(N, V), V, C));
  variants.push_back(of("tokens without ids", {-1, -1}, 3, 8));
  return variants;
}

Variants checked(const Sizes& s) {
  const int64_t V = 1000;
  Ids ids;
  for (int64_t n = 0; n < kCheckedTokens; ++n) ids.push_back(n % 5 == 0 ? 7 : n % 11 == 0 ? -1 : n * 37 % V);
  return {of(concat("width ", s.hidden), ids, V, s.hidden)};
}

Variants timed(const Sizes& s) {
  return {of(concat(s.tokens(), " x ", s.hidden, ", vocabulary ", s.vocabulary),
             text_like_ids(s.tokens(), s.vocabulary), s.vocabulary, s.hidden)};
}

}  // namespace

OperatorCase embedding_case() { return {"embedding", hard, checked, timed, hidden_row_implementation}; }

}  // namespace braid::cases
