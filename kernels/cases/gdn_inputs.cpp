#include "kernels/gdn_inputs.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

// fp32 results are fp32 sums of exact products, whatever the activations.
constexpr Closeness kNarrow = {.cpu = {5e-7, 1e-4}};
constexpr Closeness kStatistic = {.bf16 = kUsual.f32, .cpu = {5e-7, 1e-4}};

struct Numbers {
  Values qkvz = normal(), ba = normal(5);
  double cpu_weight_error = 4e-6;  // relative, of the gradients of weights in fp32
  bool smooth = true;              // over the steps of central differences
};

void declare(Trial& t, const Segments& documents, const GdnDims& d, const Numbers& numbers = {}) {
  const Segments segments = t.segments(documents);
  const int64_t N = segments.num_tokens(), Hk = d.key_heads, Hv = d.value_heads;
  const Shape keys{N, Hk, d.key_dim}, values{N, Hv, d.value_dim}, gates{N, Hv}, key_rows{N, Hk};
  const Shape taps{d.conv_channels(), 1, d.conv_kernel};
  const Var qkvz = t.input("qkvz", {N, d.qkvz_columns()}, numbers.qkvz);
  const Var ba = t.input("ba", {N, d.ba_columns()}, numbers.ba, kWide);
  const Var conv = t.input("conv", taps, normal(0.5), kWide), a_log = t.input("a_log", {Hv}, normal(), kWide);
  const Var dt_bias = t.input("dt_bias", {Hv}, normal(), kWide);
  const Var q = t.output("q", keys, kActivation, kNarrow), k = t.output("k", keys, kActivation, kNarrow);
  const Var v = t.output("v", values, kActivation, kNarrow), beta = t.output("beta", gates, kWide, kStatistic);
  const Var log_decay = t.output("log_decay", gates, kWide, kStatistic);
  const Var q_rstd = t.output("q_rstd", key_rows, kWide, kStatistic);
  const Var k_rstd = t.output("k_rstd", key_rows, kWide, kStatistic);
  const GdnProjections x = {qkvz, ba};
  const GdnInputWeights weights = {conv, a_log, dt_bias};
  const GdnInputs out = {{q, k, v, beta, log_decay}, q_rstd, k_rstd};
  const bool goes_on = !documents.tokens_before.empty();
  const Shape halo_rows{documents.num_rows, d.conv_kernel - 1, d.qkvz_columns()};
  const Var rows = goes_on ? t.input("halo", halo_rows, numbers.qkvz) : Var();
  t.forward("gdn_inputs_forward", {q, k, v, beta, log_decay, q_rstd, k_rstd},
            [=](Context& ctx) { gdn_inputs_forward(ctx, out, x, weights, segments, d, rows); },
            {.bytes = 2 * bytes_of(q, k, v, beta, log_decay)});

  t.reference_keeps_its_own();
  const Var d_q = t.input("d_q", keys, normal()), d_k = t.input("d_k", keys, normal());
  const Var d_v = t.input("d_v", values, normal()), d_beta = t.input("d_beta", gates, normal(), kWide);
  const Var d_log_decay = t.input("d_log_decay", gates, normal(), kWide);
  const Var d_qkvz = t.part("d_qkvz", qkvz.shape(), kActivation, kNarrow);  // all but the z columns
  const Var d_ba = t.output("d_ba", ba.shape(), kActivation, kNarrow);
  const Closeness of_weights = {.bf16 = kUsual.f32, .cpu = {numbers.cpu_weight_error, 1e-4}};
  const Var d_conv = t.sum("d_conv", taps, kWide, of_weights), d_a_log = t.sum("d_a_log", {Hv}, kWide, of_weights);
  const Var d_dt_bias = t.sum("d_dt_bias", {Hv}, kWide, of_weights);
  const GdnProjections d_x = {d_qkvz, d_ba};
  const GdnInputWeights d_weights = {d_conv, d_a_log, d_dt_bias};
  const DeltaRuleInputs d_out = {d_q, d_k, d_v, d_beta, d_log_decay};
  std::vector<Var> gradients = {d_qkvz, d_ba, d_conv, d_a_log, d_dt_bias};
  const Var d_rows = goes_on ? t.output("d_halo", halo_rows, kActivation, kNarrow) : Var();
  if (goes_on) gradients.push_back(d_rows);
  const GdnHalo halo = {rows, d_rows};
  t.backward("gdn_inputs_backward", gradients,
             [=](Context& ctx) { gdn_inputs_backward(ctx, d_x, d_weights, d_out, out, x, weights, segments, d, halo); },
             {.bytes = 3 * bytes_of(q, k, v) + 3.5 * bytes_of(beta, log_decay)});
  if (!numbers.smooth) return;
  t.loss(q, d_q);
  t.loss(k, d_k);
  t.loss(v, d_v);
  t.loss(beta, d_beta);
  t.loss(log_decay, d_log_decay);
  t.gradient(qkvz, d_qkvz);
  t.gradient(ba, d_ba);
  t.gradient(conv, d_conv);
  t.gradient(a_log, d_a_log);
  t.gradient(dt_bias, d_dt_bias);
  if (goes_on) t.gradient(rows, d_rows);
}

Variant of(const std::string& label, const Segments& documents, const GdnDims& d, const Numbers& numbers = {}) {
  return {label, [=](Trial& t) { declare(t, documents, d, numbers); }};
}

constexpr GdnDims kTiny = {2, 4, 3, 5, 4};
constexpr GdnDims kHeadsOf128 = {2, 4, 128, 128, 4};
constexpr GdnDims kReleased = {16, 32, 128, 128, 4};
constexpr GdnDims kOdd = {2, 6, 3, 5, 4};
constexpr GdnDims kSixTaps = {2, 4, 40, 24, 6};

// b b a a of every key head.
const Values kSaturated = edited(normal(), [](Tensor ba) {
  const double logits[] = {-1000, 1000, -1000, 30, -80, 0, 19.5, 20.5};
  for (int64_t i = 0; i < ba.numel(); ++i) ba.data<double>()[i] = logits[i % 8];
});
// Where softplus is the identity.
const Values kOneLargeGate = edited(normal(), [](Tensor ba) { ba.data<double>()[3 * 8 + 2] = 25; });
const Values kEveryThirdLarge = edited(normal(), [](Tensor qkvz) {
  for (int64_t i = 0; i < qkvz.numel(); i += 3) qkvz.data<double>()[i] *= 1000;
});

Variants hard() {
  Variants variants;
  for (int64_t taps : {4, 1, 6}) {
    GdnDims d = kTiny;
    d.conv_kernel = taps;
    variants.push_back(
        of(concat("three short documents, ", taps, " taps"), Segments::packed({1, 7, 2}), d, {.ba = kOneLargeGate}));
  }
  variants.push_back(of("a document of several tiles", Segments::packed({2, 150}), kTiny));
  variants.push_back(
      of("heads of 32", Segments::packed({100, 200}), {2, 4, 32, 32, 4}, {.ba = normal(), .cpu_weight_error = 1e-6}));
  const std::vector<int64_t> lengths = {1, 2, 3, 1, 120, 1, 1, 64, 65, 130, 2, 1, 1};
  for (const GdnDims& d : {kHeadsOf128, kOdd, kSixTaps}) {
    for (int64_t N : {1, 2, 3, 4, 63, 64, 65, 126, 128, 129, 131, 300})
      variants.push_back(of(concat(N, " tokens, heads of ", d.key_dim), Segments::whole_rows(1, N), d));
    variants.push_back(of(concat("packed, heads of ", d.key_dim), Segments::packed(lengths), d));
  }
  // Rows that go on: from fewer tokens than there are taps, and more; documents shorter than these.
  Segments ended = Segments::whole_rows(4, 67);
  ended.offsets = {0, 67, 68, 134, 136, 201, 204, 268};
  for (const GdnDims& d : {kTiny, kHeadsOf128, kOdd, kSixTaps})
    variants.push_back(of(concat("rows that go on, heads of ", d.key_dim, ", ", d.conv_kernel, " taps"),
                          going_on(ended, {50, 2, 1, 3}, {0, 9, 0, 1}), d));
  variants.push_back(of("rows of tokens that go on",
                        going_on(Segments::whole_rows(5, 2), {0, 1, 2, 3, 9}, {2, 0, 1, 7, 1}), kHeadsOf128));
  variants.push_back(of("released model", Segments::packed({100, 50}), kReleased));
  variants.push_back(of("saturated gates", Segments::whole_rows(1, 2), kHeadsOf128, {.ba = kSaturated}));
  variants.push_back(
      of("large inputs", Segments::whole_rows(1, 40), kHeadsOf128, {.qkvz = kEveryThirdLarge, .smooth = false}));
  variants.push_back(of("no tokens", Segments::packed({}), kHeadsOf128));
  return variants;
}

std::string heads_of(const GdnDims& d) {
  return concat("heads of ", d.key_dim, d.key_dim == d.value_dim ? "" : concat(" and ", d.value_dim));
}

Variants checked(const Sizes& s) {
  if (!s.gdn) return {};
  Variants variants = {of(heads_of(*s.gdn), packed_documents(), *s.gdn)};
  if (s.shared_rows)
    variants.push_back(of(heads_of(*s.gdn) + ", halves of documents", halves_of_documents(2, 100), *s.gdn));
  return variants;
}
Variants timed(const Sizes& s) {
  if (!s.gdn) return {};
  if (!s.documents.empty()) return {of("packed", Segments::packed(s.documents), *s.gdn)};
  return {of(rows_name(s), whole_rows(s), *s.gdn, {.ba = normal()})};
}

Implementation implementation(Context& ctx, const Sizes& s) {
  return gdn_inputs_implementation(ctx, s.activation, *s.gdn);
}

}  // namespace

OperatorCase gdn_inputs_case() { return {"gdn_inputs", hard, checked, timed, implementation}; }

}  // namespace braid::cases
