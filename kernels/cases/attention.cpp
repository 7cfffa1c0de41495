#include "kernels/attention.h"

#include <algorithm>
#include <numeric>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

// "cuDNN" or "tensor-core kernel", without the reason for it.
std::string short_name(const std::string& implementation) {
  return implementation.substr(0, implementation.find(" ("));
}

struct Heads {
  int64_t Hq, Hkv, Dh;
  bool gated = true;
};
Heads heads_of(const AttentionDims& d) { return {d.query_heads, d.kv_heads, d.head_dim, d.gated}; }

void declare(Trial& t, const Segments& documents, const Heads& h) {
  const Segments segments = t.segments(documents);
  const int64_t N = segments.num_tokens();
  const int64_t M = std::accumulate(documents.tokens_before.begin(), documents.tokens_before.end(), N);
  const Shape queries{N, h.Hq, h.Dh}, keys{M, h.Hkv, h.Dh}, pairs{N, h.Hq, 2, h.Dh};
  const Closeness forward = {.cpu = {1e-6, 1e-4}};
  const Closeness of_lse = {.bf16 = kUsual.f32, .cpu = {1e-6, 1e-4}};  // fp32 sums of what both sides read
  const Closeness of_gate = {.bf16 = {1e-2, 1e-1, 0x1p-7}};
  // In bf16, o is rounded before delta = sum of d_o * o is formed, and d_o before its products: d_score is the small
  // difference of two numbers that carry these errors, and is rounded itself.
  Closeness of_scores = {.bf16 = {1.5e-2, 1.5e-1, 0x1p-7}};
  double seen = 0;  // pairs of a query and a key
  int64_t longest = 0;
  for (int64_t doc = 0; doc < documents.num_documents(); ++doc) {
    const int64_t length = documents.length(doc), before = documents.before_document(doc);
    longest = std::max(longest, before + length);
    seen += double(length) * (double(before) + 0.5 * double(length + 1));
  }
  // Where every document is one token, nothing depends on scores: the gradient is what rounding leaves of 0.
  if (longest == 1) of_scores.f32.absolute = of_scores.bf16.absolute = of_scores.cpu.absolute = 1e-4;

  const Var q = t.input("q", queries, normal()), k = t.input("k", keys, normal()), v = t.input("v", keys, normal());
  const Var q_gate = h.gated ? t.input("q_gate", pairs, normal()) : Var();
  const Var y = t.output("y", queries, kActivation, forward), o = t.output("o", queries, kActivation, forward);
  const Var lse = t.output("lse", {N, h.Hq}, kWide, of_lse);
  const AttentionTensors in = {q, k, v, q_gate};
  const AttentionOutputs out = {y, o, lse};
  const AttentionImplementation by = attention_implementation(t.ctx(), in, segments);
  const double product = 2 * seen * double(h.Hq * h.Dh);
  t.forward("attention_forward", {y, o, lse}, [=](Context& ctx) { attention_forward(ctx, out, in, segments); },
            {.bytes = 4 * bytes_of(q) + bytes_of(k, v), .flop = 2 * product, .by = short_name(by.forward)});

  const Var d_y = t.input("d_y", queries, normal()), d_q = t.output("d_q", queries, kActivation, of_scores);
  const Var d_k = t.output("d_k", keys, kActivation, of_scores), d_v = t.output("d_v", keys);
  const Var d_q_gate = h.gated ? t.part("d_q_gate", pairs, kActivation, of_gate) : Var();  // the gate half
  std::vector<Var> gradients = {d_q, d_k, d_v};
  if (h.gated) gradients.push_back(d_q_gate);
  const AttentionGradients d_in = {d_q, d_k, d_v, d_q_gate};
  t.backward("attention_backward", gradients,
             [=](Context& ctx) { attention_backward(ctx, d_in, d_y, in, out, segments); },
             {.bytes = 6 * bytes_of(q) + bytes_of(k, v, d_k, d_v), .flop = 5 * product, .by = short_name(by.backward)});
  t.loss(y, d_y);
  if (longest > 1) {
    t.gradient(q, d_q);
    t.gradient(k, d_k);
  }
  t.gradient(v, d_v);
  if (h.gated) t.gradient(q_gate, d_q_gate);
}

Variant of(const std::string& label, const Segments& documents, const Heads& heads) {
  return {label, [=](Trial& t) { declare(t, documents, heads); }};
}

Variants hard() {
  // Below, at and above the sizes of tiles.
  const std::vector<int64_t> lengths = {1, 31, 32, 33, 2, 65, 63, 64, 128, 1, 1, 1, 200};
  const Heads released = {16, 2, 256};
  Variants variants = {
      of("three short documents", Segments::packed({1, 5, 3}), {4, 2, 3}),
      of("lengths around tiles of the CPU", Segments::packed({1, 31, 32, 33, 2, 65, 255, 256, 257, 300}), {6, 2, 5}),
      of("600 tokens", Segments::packed({600}), {2, 1, 64}),
      of("released model, packed", Segments::packed(lengths), released),
      of("released model, 2 x 256", Segments::whole_rows(2, 256), released),
      of("released model, 3 x 100", Segments::whole_rows(3, 100), released),
      of("released model, one token", Segments::packed({1}), released),
      of("released model, 300 tokens", Segments::packed({300}), released),
      of("two tiles and a part of one", Segments::packed({70, 1, 33}), {2, 1, 256}),
      of("two tiles and a part of one, small heads", Segments::packed({70, 1, 33}), {2, 2, 16}),
      // More documents than the least bound of a cuDNN plan, and as many as tokens.
      of("130 documents of a token", equal_documents(130, 1), {2, 1, 64}),
      of("70 documents of 3 tokens", equal_documents(210, 3), {2, 1, 256}),
      of("no tokens", Segments::packed({}), {2, 1, 4})};
  // Rows that go on: from tokens that fill tiles and others, documents that end in their first row and go on in the
  // next.
  Segments ended = Segments::whole_rows(3, 100);
  ended.offsets = {0, 100, 103, 200, 270, 300};
  for (const Heads& h : {released, Heads{4, 2, 64}, {2, 1, 80}, {6, 2, 5}, {2, 1, 256, false}}) {
    const std::string label = concat(", ", h.Hq, " heads of ", h.Dh);
    variants.push_back(of("rows that go on" + label, going_on(ended, {70, 65, 0}, {0, 9, 50}), h));
    variants.push_back(of("halves of documents" + label, halves_of_documents(2, 128), h));
  }
  variants.push_back(
      of("rows of a token that go on", going_on(Segments::whole_rows(2, 1), {64, 1}, {0, 1}), {4, 1, 16}));
  variants.push_back(of("a short part behind a long one", going_on(Segments::whole_rows(1, 70), {500}, {1}), released));
  for (const Heads& h : {Heads{6, 2, 5},
                         {3, 3, 8},
                         {4, 1, 16},
                         {2, 1, 64},
                         {4, 2, 80},
                         {2, 2, 96},
                         {4, 4, 128},
                         {2, 1, 144},
                         {2, 1, 256},
                         {2, 1, 33},
                         {6, 2, 5, false},
                         {4, 2, 80, false},
                         {2, 1, 256, false}}) {
    const std::string label = concat(", ", h.Hq, " and ", h.Hkv, " heads of ", h.Dh, h.gated ? "" : " without gates");
    variants.push_back(of("packed" + label, Segments::packed(lengths), h));
    variants.push_back(of("2 x 128" + label, Segments::whole_rows(2, 128), h));
  }
  return variants;
}

Variants checked(const Sizes& s) {
  if (!s.attention) return {};
  // Whole rows of as many tokens as cuDNN's backward wants them, or of another length if the run's rows have one.
  const Segments whole = Segments::whole_rows(2, s.row_tokens % 128 == 0 ? 128 : 100);
  const std::string label = concat("heads of ", s.attention->head_dim);
  Variants variants = {of(label + ", whole rows", whole, heads_of(*s.attention)),
                       of(label + ", packed documents", packed_documents(), heads_of(*s.attention))};
  if (s.shared_rows)
    variants.push_back(of(label + ", halves of documents", halves_of_documents(2, 100), heads_of(*s.attention)));
  return variants;
}

Variants timed(const Sizes& s) {
  if (!s.attention) return {};
  const Heads heads = heads_of(*s.attention);
  const bool given = !s.documents.empty();
  Variants variants = {
      of(rows_name(s), whole_rows(s), heads),
      of(rows_name(s) + ", packed", given ? Segments::packed(s.documents) : mixed_documents(s), heads)};
  if (s.rows > 1 && !given) {
    variants.push_back(of(concat("1 x ", s.tokens()), Segments::whole_rows(1, s.tokens()), heads));
    variants.push_back(of(concat("1 x ", s.tokens(), ", uneven"), uneven_documents(s.tokens()), heads));
  }
  if (s.shared_rows && !given)
    variants.push_back(of("halves of documents, " + rows_name(s), halves_of_documents(s.rows, s.row_tokens), heads));
  return variants;
}

Implementation implementation(Context& ctx, const Sizes& s) {
  const Heads h = heads_of(*s.attention);
  const int64_t N = s.tokens();
  const Tensor q = shaped(ctx, s.activation, {N, h.Hq, h.Dh}), k = shaped(ctx, s.activation, {N, h.Hkv, h.Dh});
  const AttentionTensors in = {q, k, k, h.gated ? shaped(ctx, s.activation, {N, h.Hq, 2, h.Dh}) : Tensor()};
  Segments two_documents = whole_rows(s);  // in each row
  two_documents.offsets = {0};
  for (int64_t row = 0; row < s.rows; ++row) {
    two_documents.offsets.push_back(row * s.row_tokens + 1);
    two_documents.offsets.push_back((row + 1) * s.row_tokens);
  }
  const auto whole = attention_implementation(ctx, in, whole_rows(s));
  const auto packed = attention_implementation(ctx, in, two_documents);
  if (!ctx.on_cuda()) return {whole.forward, ""};
  return {concat("whole rows: ", whole.forward, " forward, ", whole.backward,
                 " backward; packed documents: ", packed.forward, " forward, ", packed.backward, " backward"),
          packed.why_slow};
}

}  // namespace

OperatorCase attention_case() { return {"attention", hard, checked, timed, implementation}; }

}  // namespace braid::cases
