#include "kernels/sum_squares.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

// All sum in fp64, in different orders; halved, because of a single number twice the error is allowed.
constexpr Closeness kDoubleSum = {{0.5e-13, 1e-13}, {0.5e-13, 1e-13}, {0.5e-13, 1e-13}};

void declare(Trial& t, Shape shape, const Values& values, const Closeness& close, int64_t skipped, Storage storage) {
  const Var x = t.input("x", shape, values, storage), out = t.output("out", {1}, kF64, close);
  const Tensor from = x.view({x.numel()}).rows(skipped, x.numel());
  t.forward("sum_squares", {out}, [=](Context& ctx) { sum_squares(ctx, out, from); }, {.bytes = bytes_of(from)});
}

Variant of(const std::string& label, Shape shape, const Values& values = normal(), const Closeness& close = kDoubleSum,
           int64_t skipped = 0, Storage storage = kActivation) {
  return {label, [=](Trial& t) { declare(t, shape, values, close, skipped, storage); }};
}

Variants hard() {
  Variants variants;
  for (int64_t n :
       {0, 1, 7, 63, 64, 65, 130, 1023, 1024, 1025, 4095, 4096, 4097, 20001, 100003, 1 << 20, (1 << 20) + 8, 3000000})
    variants.push_back(of(concat(n, " threes"), {n}, constant(3), kExact));
  variants.push_back(of("50 x 3 x 601", {50, 3, 601}));
  variants.push_back(of("from the second number on", {50, 3, 601}, normal(), kDoubleSum, 1));
  variants.push_back(of("1e30", {1}, constant(1e30), kDoubleSum));
  return variants;
}

Variants checked(const Sizes&) { return {of("5003 numbers", {5003})}; }
Variants timed(const Sizes& s) {
  return {of(concat(s.shard_elements), {s.shard_elements}, normal(1e-3), kDoubleSum, 0, kWide)};
}

}  // namespace

OperatorCase sum_squares_case() { return {"sum_squares", hard, checked, timed}; }

}  // namespace braid::cases
