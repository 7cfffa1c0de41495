#include "kernels/random.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

void declare(Trial& t, Shape shape) {
  // The same fp64 numbers but for their last bits, so after rounding the same but for one in millions.
  const Tolerance close = {1e-9, 1e-2};
  const Closeness same_numbers = {close, close, close, true};
  const Var gauss = t.output("x", shape, Storage::kActivation, same_numbers);
  const Var flat = t.output("x, uniform", shape, Storage::kActivation, same_numbers);
  t.forward("fill_normal", {gauss}, [=](Context& ctx) { fill_normal(ctx, gauss, 0.1, 2, 5, 6, 1000); },
            {.bytes = bytes_of(gauss)});
  t.forward("fill_uniform", {flat}, [=](Context& ctx) { fill_uniform(ctx, flat, -1, 1, 5, 7, int64_t{1} << 40); },
            {.bytes = bytes_of(flat)});
}

Variants hard() {
  Variants variants;
  for (int64_t n : {1, 63, 64, 65, 130, 20000, 0})
    variants.push_back({concat(n, " numbers"), [=](Trial& t) { declare(t, {n}); }});
  return variants;
}

Variants checked(const Sizes&) {
  return {{"5003 numbers", [](Trial& t) { declare(t, {5003}); }}};
}

Variants timed(const Sizes& s) {
  return {{concat(s.tokens(), " x ", s.hidden), [=](Trial& t) { declare(t, {s.tokens(), s.hidden}); }}};
}

}  // namespace

OperatorCase random_case() { return {"random", hard, checked, timed}; }

}  // namespace braid::cases
