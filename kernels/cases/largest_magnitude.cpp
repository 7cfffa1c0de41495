#include "kernels/largest_magnitude.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

void declare(Trial& t, Shape shape, const Values& values, int64_t skipped) {
  const Var x = t.input("x", shape, values), out = t.output("out", {1}, kF64, kExact);
  const Tensor from = x.view({x.numel()}).rows(skipped, x.numel());
  t.forward("largest_magnitude", {out}, [=](Context& ctx) { largest_magnitude(ctx, out, from); },
            {.bytes = bytes_of(from)});
}

Variant of(const std::string& label, Shape shape, const Values& values = normal(), int64_t skipped = 0) {
  return {label, [=](Trial& t) { declare(t, shape, values, skipped); }};
}

// One number is larger than the others: the last, of either sign.
Values last_is(double value) {
  return edited(normal(), [value](Tensor x) {
    if (x.numel() > 0) x.data<double>()[x.numel() - 1] = value;
  });
}

Variants hard() {
  Variants variants = {of("50 x 3 x 601", {50, 3, 601}), of("from the second number on", {50, 3, 601}, normal(), 1),
                       of("zeros", {64}, constant(0)), of("tiny", {65}, normal(1e-30))};
  for (int64_t n : {0, 1, 7, 63, 64, 65, 130, 4097, 100003, 3000000}) {
    variants.push_back(of(concat(n, " numbers, the last 96"), {n}, last_is(96)));
    variants.push_back(of(concat(n, " numbers, the last -96"), {n}, last_is(-96)));
  }
  return variants;
}

Variants checked(const Sizes&) { return {of("5003 numbers", {5003}, last_is(-96))}; }
Variants timed(const Sizes& s) { return {of(concat(s.shard_elements), {s.shard_elements})}; }

}  // namespace

OperatorCase largest_magnitude_case() { return {"largest_magnitude", hard, checked, timed}; }

}  // namespace braid::cases
