#include "kernels/split_weights.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

void declare(Trial& t, int64_t n, const Values& values) {
  const Var master = t.input("master", {n}, values, kWide), weight = t.output("weight", {n});
  const Var low = t.low_bits("low", weight);
  t.forward("split_weights", {weight, low}, [=](Context& ctx) { split_weights(ctx, weight, low, master); },
            {.bytes = bytes_of(master, weight, low)});
  const Var alone = t.output("weight, without low bits", {n});
  t.forward("split_weights", {alone}, [=](Context& ctx) { split_weights(ctx, alone, {}, master); },
            {.bytes = bytes_of(master, alone), .by = "the weight alone"});
  t.same_bits(alone, weight);
  // Of what is split in the same step, as a step begins with tensors as they start.
  const Var part = t.part("weight of a round trip", {n}), rest = t.low_bits("low of a round trip", part);
  const Var joined = t.output("joined", {n}, kWide, kExact);
  t.forward("join_weights", {part, rest, joined},
            [=](Context& ctx) {
              split_weights(ctx, part, rest, master);
              join_weights(ctx, joined, part, rest);
            },
            {.bytes = bytes_of(master, part, rest, part, rest, joined), .by = "split and joined"});
  t.same_bits(joined, master);
}

Variant of(const std::string& label, int64_t n, const Values& values = normal()) {
  return {label, [=](Trial& t) { declare(t, n, values); }};
}

Variants hard() {
  Variants variants;
  for (int64_t n : {1, 3, 63, 64, 65, 130, 5003, 0}) variants.push_back(of(concat(n, " numbers"), n));
  // Halfway between two bf16 numbers, below an even and an odd one, and next to it.
  variants.push_back(
      of("ties", 8,
         edited(constant(1), with_values({1 + 0x1p-8, -1 - 0x1p-8, 1 + 0x3p-8, -1 - 0x3p-8, 1 + 0x1p-8 - 0x1p-23,
                                          1 + 0x1p-8 + 0x1p-23, 1 + 0x3p-8 - 0x1p-23, 1 + 0x3p-8 + 0x1p-23}))));
  return variants;
}

Variants checked(const Sizes&) { return {of("5003 numbers", 5003)}; }
Variants timed(const Sizes& s) { return {of(concat(s.shard_elements), s.shard_elements)}; }

}  // namespace

OperatorCase split_weights_case() { return {"split_weights", hard, checked, timed}; }

}  // namespace braid::cases
