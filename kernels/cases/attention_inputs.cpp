#include "kernels/attention_inputs.h"

#include <utility>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

constexpr Closeness kNarrow = {.cpu = {5e-6, 1e-4}};  // fp32 angles
constexpr Closeness kStatistic = {.bf16 = kUsual.f32, .cpu = {5e-6, 1e-4}};
constexpr Closeness kNormSum = {{2e-5, 2e-4}, {2e-5, 2e-4}, {5e-6, 1e-4}};

void declare(Trial& t, const Segments& documents, const AttentionDims& d) {
  const Segments segments = t.segments(documents);
  const int64_t N = segments.num_tokens(), Hq = d.query_heads, Hkv = d.kv_heads, Dh = d.head_dim;
  const Shape pairs{N, Hq, d.query_parts(), Dh}, queries{N, Hq, Dh}, keys{N, Hkv, Dh};
  const Var q_gate = t.input("q_gate", pairs, normal()), projected_k = t.input("projected k", keys, normal());
  const Var q_norm = t.input("q_norm", {Dh}, normal(0.3), kWide), k_norm = t.input("k_norm", {Dh}, normal(0.3), kWide);
  const Var q = t.output("q", queries, kActivation, kNarrow), k = t.output("k", keys, kActivation, kNarrow);
  const Var q_rstd = t.output("q_rstd", {N, Hq}, kWide, kStatistic);
  const Var k_rstd = t.output("k_rstd", {N, Hkv}, kWide, kStatistic);
  const AttentionProjections x = {q_gate, projected_k};
  const AttentionInputWeights weights = {q_norm, k_norm};
  const AttentionInputs out = {q, k, q_rstd, k_rstd};
  t.forward("attention_inputs_forward", {q, k, q_rstd, k_rstd},
            [=](Context& ctx) { attention_inputs_forward(ctx, out, x, weights, segments, d); },
            {.bytes = 2 * bytes_of(q, k)});

  const Var d_q = t.input("d_q", queries, normal()), d_k = t.input("d_k", keys, normal());
  const Var d_q_gate = t.part("d_q_gate", pairs, kActivation, kNarrow);  // the query half
  const Var d_projected_k = t.output("d_projected k", keys, kActivation, kNarrow);
  const Var d_q_norm = t.sum("d_q_norm", {Dh}, kWide, kNormSum), d_k_norm = t.sum("d_k_norm", {Dh}, kWide, kNormSum);
  const AttentionProjections d_x = {d_q_gate, d_projected_k};
  const AttentionInputWeights d_weights = {d_q_norm, d_k_norm};
  t.backward(
      "attention_inputs_backward", {d_q_gate, d_projected_k, d_q_norm, d_k_norm},
      [=](Context& ctx) { attention_inputs_backward(ctx, d_x, d_weights, d_q, d_k, out, x, weights, segments, d); },
      {.bytes = 3 * bytes_of(q, k)});
  t.loss(q, d_q);
  t.loss(k, d_k);
  t.gradient(q_gate, d_q_gate);
  t.gradient(projected_k, d_projected_k);
  t.gradient(q_norm, d_q_norm);
  t.gradient(k_norm, d_k_norm);
}

Variant of(const std::string& label, const Segments& documents, const AttentionDims& d) {
  return {label, [=](Trial& t) { declare(t, documents, d); }};
}

Variants hard() {
  const AttentionDims tiny = {4, 2, 7, 4, 100, 1e-6}, released = {16, 2, 256, 64, 1e7, 1e-6};
  Variants variants = {of("three short documents", Segments::packed({1, 3, 2}), tiny),
                       of("long documents", Segments::packed({130, 2, 65}), tiny),
                       of("150 and 1 tokens", Segments::packed({150, 1}), tiny),
                       of("released model, packed", Segments::packed({1, 50, 7, 1, 30}), released),
                       of("released model, rows", Segments::whole_rows(3, 17), released),
                       of("released model, one token", Segments::packed({1}), released),
                       of("63, 64 and 65 tokens", Segments::packed({63, 64, 65}), tiny),
                       of("no tokens", Segments::packed({}), tiny)};
  for (const auto& [head_dim, rotary_dim] : {std::pair<int64_t, int64_t>{7, 4},
                                             {7, 0},
                                             {6, 6},
                                             {128, 128},
                                             {128, 32},
                                             {256, 256},
                                             {256, 8},
                                             {64, 16},
                                             {512, 64}}) {
    AttentionDims dims = tiny;
    dims.head_dim = head_dim;
    dims.rotary_dim = rotary_dim;
    variants.push_back(
        of(concat("heads of ", head_dim, ", rotary ", rotary_dim), Segments::packed({3, 1, 40, 20}), dims));
  }
  for (AttentionDims dims : {tiny, released}) {
    dims.gated = false;
    variants.push_back(
        of(concat("heads of ", dims.head_dim, " without gates"), Segments::packed({3, 1, 40, 20}), dims));
  }
  for (AttentionDims dims : {tiny, released}) {  // a half alone
    for (int64_t* heads : {&dims.query_heads, &dims.kv_heads}) {
      const int64_t all = std::exchange(*heads, 0);
      variants.push_back(of(concat(dims.query_heads, " and ", dims.kv_heads, " heads of ", dims.head_dim),
                            Segments::packed({3, 1, 40, 20}), dims));
      *heads = all;
    }
  }
  for (const RopeParameters& rope : {RopeParameters{RopeType::kLinear, 2.5}, RopeParameters{RopeType::kYarn, 4, 64},
                                     RopeParameters{RopeType::kYarn, 8, 32, 0, 4, 0.5, 0.8, 0.4, false}}) {
    AttentionDims dims = {2, 1, 16, 16, 1e4, 1e-6, true, rope};
    variants.push_back(
        of(concat("positions of ", name_of_enum(rope.rope_type), ", ", rope.factor), Segments::packed({3, 70}), dims));
  }
  return variants;
}

Variants checked(const Sizes& s) {
  if (!s.attention) return {};
  return {of(concat("heads of ", s.attention->head_dim), packed_documents(), *s.attention)};
}
Variants timed(const Sizes& s) {
  if (!s.attention) return {};
  Variants variants = {of(rows_name(s), whole_rows(s), *s.attention)};
  if (!s.documents.empty()) variants.push_back(of("packed", Segments::packed(s.documents), *s.attention));
  return variants;
}

Implementation implementation(Context& ctx, const Sizes& s) {
  return attention_inputs_implementation(ctx, s.activation, *s.attention);
}

}  // namespace

OperatorCase attention_inputs_case() { return {"attention_inputs", hard, checked, timed, implementation}; }

}  // namespace braid::cases
