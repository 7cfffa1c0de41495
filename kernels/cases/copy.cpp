#include "kernels/core/copy.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

void declare(Trial& t, Shape shape) {
  const Var narrow = t.input("narrow", shape, normal()), wide = t.input("wide", shape, normal(), kWide);
  const Var copied = t.output("to", shape, kActivation, kExact);
  t.forward("copy", {copied}, [=](Context& ctx) { copy(ctx, copied, narrow); }, {.bytes = bytes_of(narrow, copied)});
  const Var rounded = t.output("to, rounded", shape, kActivation, kRoundedOnce);
  t.forward("convert", {rounded}, [=](Context& ctx) { convert(ctx, rounded, wide); },
            {.bytes = bytes_of(wide, rounded)});
  const Var widened = t.output("to, widened", shape, kWide, kExact);
  t.forward("convert", {widened}, [=](Context& ctx) { convert(ctx, widened, narrow); });
  const Var added = t.sum("to, added", shape, kActivation);
  t.forward("add", {added}, [=](Context& ctx) { add(ctx, added, narrow); },
            {.bytes = bytes_of(narrow) + 2 * bytes_of(added)});
  const Var zeros = t.output("x", shape, kActivation, kExact);
  t.forward("fill_zero", {zeros}, [=](Context& ctx) { fill_zero(ctx, zeros); }, {.bytes = bytes_of(zeros)});
}

Variants hard() {
  Variants variants;
  for (const Shape& shape : {Shape{1}, Shape{63, 65}, Shape{130, 64}, Shape{5003}, Shape{0, 8}})
    variants.push_back({shape.to_string(), [=](Trial& t) { declare(t, shape); }});
  return variants;
}

Variants checked(const Sizes&) {
  return {{"5003 numbers", [](Trial& t) { declare(t, {5003}); }}};
}

Variants timed(const Sizes& s) {
  return {{concat(s.copy_bytes, " bytes"),
           [=](Trial& t) {
             const Var from = t.input("from", {s.copy_bytes / 4}, normal(), kWide);
             const Var to = t.output("to", from.shape(), kWide, kExact);
             t.forward("copy", {to}, [=](Context& ctx) { copy(ctx, to, from); }, {.bytes = bytes_of(from, to)});
           }},
          {concat(s.tokens(), " x ", s.hidden), [=](Trial& t) {
             declare(t, {s.tokens(), s.hidden});
           }}};
}

}  // namespace

OperatorCase copy_case() { return {"copy", hard, checked, timed}; }

}  // namespace braid::cases
