#include "kernels/load_balance.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

enum class Load { kOneForAll, kOfEachRow };

// B rows of T tokens that chose K experts each; every third expert was chosen by none.
void declare(Trial& t, int64_t B, int64_t T, int64_t E, int64_t K, Load load) {
  const double per_token = 1 / double(std::max<int64_t>(1, B * T));
  std::vector<int64_t> chosen(static_cast<size_t>(B * E));
  for (int64_t i = 0; i < B * E; ++i) chosen[i] = T == 0 || i % 3 == 2 ? 0 : T * K / E + i % 5;
  const std::vector<int64_t> loads =
      load == Load::kOfEachRow ? chosen : std::vector<int64_t>(chosen.begin(), chosen.begin() + E);
  const Closeness close = {{1e-12, 1e-11}, {1e-12, 1e-11}, {1e-12, 1e-11}};  // fp64 everywhere
  const Var counts = t.input("counts", {B, E}, chosen),
            prob_sum = t.input("prob_sum", {B, E}, uniform(0, double(T) + 1), kF64);
  const Var z_sum = t.input("z_sum", {B}, uniform(0, double(T) + 1), kF64);
  const Var by = t.input("load", {load == Load::kOfEachRow ? B : 1, E}, loads);
  const Var totals = t.in_out("totals", t.input("totals before", {E}, std::vector<int64_t>(static_cast<size_t>(E), 3)));
  t.forward("add_counts", {totals}, [=](Context& ctx) { add_counts(ctx, totals, counts); },
            {.bytes = bytes_of(counts, totals, totals)});

  const Var d_prob = t.output("d_prob", {B, E}, kF64, close), sums = t.sum("sums", {2}, kF64, close);
  RouterOutputs router;
  router.counts = counts, router.prob_sum = prob_sum, router.z_sum = z_sum;
  t.forward("load_balance", {d_prob, sums},
            [=](Context& ctx) { load_balance(ctx, d_prob, sums, by, router, 0.1, per_token); },
            {.bytes = bytes_of(prob_sum, d_prob, by)});
}

Variant of(int64_t B, int64_t T, int64_t E, int64_t K, Load load) {
  return {concat(B, " x ", E, load == Load::kOneForAll ? ", one load" : ""),
          [=](Trial& t) { declare(t, B, T, E, K, load); }};
}

Variants hard() {
  Variants variants;
  for (Load load : {Load::kOneForAll, Load::kOfEachRow})
    for (const auto& [B, E] : {std::pair<int64_t, int64_t>{1, 1}, {3, 64}, {2, 65}, {5, 130}, {8, 512}, {2, 4096}})
      variants.push_back(of(B, 100, E, 2, load));
  variants.push_back({"nothing was counted", [](Trial& t) { declare(t, 2, 0, 16, 0, Load::kOfEachRow); }});
  return variants;
}

Variants checked(const Sizes& s) { return {of(3, 68, s.experts, s.experts_per_token, Load::kOneForAll)}; }
Variants timed(const Sizes& s) { return {of(s.rows, s.row_tokens, s.experts, s.experts_per_token, Load::kOfEachRow)}; }

}  // namespace

OperatorCase load_balance_case() { return {"load_balance", hard, checked, timed}; }

}  // namespace braid::cases
