#include "kernels/gated_delta_rule.h"

#include <array>

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;

struct Heads {
  int64_t Hk = 1, Hv = 2, Dk = 128, Dv = 128;
};
Heads heads_of(const GdnDims& d) { return {d.key_heads, d.value_heads, d.key_dim, d.value_dim}; }

struct Numbers {
  Values k = edited(normal(), unit_rows), beta = uniform(0, 1), log_decay = uniform(-0.3, 0);
  Closeness close = kUsual;
};

void declare(Trial& t, const Segments& documents, const Heads& h, const Numbers& numbers) {
  const Segments segments = t.segments(documents);
  const int64_t N = segments.num_tokens();
  const Shape keys{N, h.Hk, h.Dk}, values{N, h.Hv, h.Dv}, gates{N, h.Hv};
  const Closeness& close = numbers.close;
  const Var q = t.input("q", keys, edited(normal(), unit_rows)), k = t.input("k", keys, numbers.k);
  const Var v = t.input("v", values, normal()), beta = t.input("beta", gates, numbers.beta, kWide);
  const Var log_decay = t.input("log_decay", gates, numbers.log_decay, kWide);
  const Var o = t.output("o", values, kActivation, close);
  const DeltaRuleInputs in = {q, k, v, beta, log_decay};
  const bool goes_on = !documents.tokens_before.empty();
  const Shape state_shape{documents.num_rows, h.Hv, h.Dk, h.Dv};
  const Values of_states = normal(1 / std::sqrt(double(h.Dk)));
  const Var initial = goes_on ? t.input("initial", state_shape, of_states, kWide) : Var();
  const Var final = goes_on ? t.output("final", state_shape, kWide, close) : Var();
  // Products of (64, Dk) by (Dk, Dv) and of (64, 64) by (64, Dv) that the chunked form has, forward, and backward with
  // what it recomputes.
  const double width = 2.0 * double(values.numel()), state = width * double(h.Dk);
  const double square = width * double(kDeltaRuleChunk);
  std::vector<Var> outputs = {o};
  if (goes_on) outputs.push_back(final);
  t.forward("gated_delta_rule_forward", outputs,
            [=](Context& ctx) {
              gated_delta_rule_forward(ctx, o, in, segments, {initial, final});
            },
            {.bytes = bytes_of(q, k, v, o, beta, log_decay), .flop = 3 * state + 4 * square});

  const Var d_o = t.input("d_o", values, normal()), d_q = t.output("d_q", keys, kActivation, close);
  const Var d_k = t.output("d_k", keys, kActivation, close), d_v = t.output("d_v", values, kActivation, close);
  const Var d_beta = t.output("d_beta", gates, kWide, close);
  const Var d_log_decay = t.output("d_log_decay", gates, kWide, close);
  const DeltaRuleInputs d_in = {d_q, d_k, d_v, d_beta, d_log_decay};
  std::vector<Var> gradients = {d_q, d_k, d_v, d_beta, d_log_decay};
  const Var d_final = goes_on ? t.input("d_final", state_shape, normal(), kWide) : Var();
  const Var d_initial = goes_on ? t.output("d_initial", state_shape, kWide, close) : Var();
  if (goes_on) gradients.push_back(d_initial);
  t.backward("gated_delta_rule_backward", gradients,
             [=](Context& ctx) {
               gated_delta_rule_backward(ctx, d_in, d_o, in, segments, {initial, d_initial, d_final});
             },
             {.bytes = 2 * bytes_of(q, k, beta, log_decay) + bytes_of(v, d_o, d_v), .flop = 8 * state + 11 * square});
  t.loss(o, d_o);
  t.gradient_error(1e-7);
  t.gradient(q, d_q);
  t.gradient(k, d_k);
  t.gradient(v, d_v);
  t.gradient(beta, d_beta);
  t.gradient(log_decay, d_log_decay);
  if (!goes_on) return;
  t.loss(final, d_final);
  t.gradient(initial, d_initial);
}

// What ranks that share rows find of their parts, and tell each other.
void declare_parts(Trial& t, const Segments& parts, const Heads& h, const Numbers& numbers) {
  const Segments segments = t.segments(parts);
  const int64_t N = segments.num_tokens(), B = segments.num_rows;
  const Shape keys{N, h.Hk, h.Dk}, values{N, h.Hv, h.Dv}, gates{N, h.Hv};
  const Shape state_shape{B, h.Hv, h.Dk, h.Dv}, transition_shape{B, h.Hv, h.Dk, h.Dk}, one{h.Hv, h.Dk, h.Dv};
  const Closeness& close = numbers.close;
  const Var q = t.input("q", keys, edited(normal(), unit_rows)), k = t.input("k", keys, numbers.k);
  const Var v = t.input("v", values, normal()), beta = t.input("beta", gates, numbers.beta, kWide);
  const Var log_decay = t.input("log_decay", gates, numbers.log_decay, kWide);
  const Var d_o = t.input("d_o", values, normal()), d_final = t.input("d_final", state_shape, normal(), kWide);
  const DeltaRuleInputs in = {q, k, v, beta, log_decay};
  const double width = 2.0 * double(values.numel()), state = width * double(h.Dk);
  const double square = width * double(kDeltaRuleChunk);

  const Var transition = t.output("transition", transition_shape, kWide, close);
  t.forward("gated_delta_rule_transition", {transition},
            [=](Context& ctx) { gated_delta_rule_transition(ctx, transition, in, segments); },
            {.bytes = bytes_of(k, beta, log_decay, transition), .flop = 2 * state + 3 * square});
  const Var contribution = t.output("contribution", state_shape, kWide, close);
  t.forward("gated_delta_rule_forward", {contribution},
            [=](Context& ctx) {
              gated_delta_rule_forward(ctx, {}, in, segments, {{}, contribution});
            },
            {.bytes = bytes_of(k, v, beta, log_decay, contribution), .flop = 2 * state + 3 * square});
  const Var d_contribution = t.output("d_contribution", state_shape, kWide, close);
  t.backward("gated_delta_rule_backward", {d_contribution},
             [=](Context& ctx) {
               gated_delta_rule_backward(ctx, {}, d_o, in, segments, {{}, d_contribution, d_final});
             },
             {.bytes = bytes_of(q, k, d_o, beta, log_decay, d_contribution), .flop = 3 * state + 4 * square});

  // The ways to the parts of one row, and one that passes them all, again and again: longer than a launch takes, where
  // heads are small.
  const int64_t steps = h.Dk < 64 ? 500 : B;
  std::vector<std::vector<int64_t>> there(size_t(B + 1)), from_there(size_t(B + 1));
  for (int64_t row = 0; row < B; ++row) {
    for (int64_t part = 0; part < row; ++part) there[size_t(row)].push_back(part);
    for (int64_t part = B - 1; part > row; --part) from_there[size_t(row)].push_back(part);
  }
  for (int64_t i = 0; i < steps; ++i) {
    there.back().push_back(i % B);
    from_there.back().push_back((2 * i + 1) % B);
  }
  const Shape ends{B + 1, h.Hv, h.Dk, h.Dv};
  const double carried = 2.0 * double((B * (B - 1) / 2 + steps) * h.Hv * h.Dk * h.Dk * h.Dv);
  const Var forth = t.output("forth", ends, kWide, kWideSum), back = t.output("back", ends, kWide, kWideSum);
  t.forward("carry_states", {forth},
            [=](Context& ctx) { carry_states(ctx, forth, transition, contribution, there, StateDirection::kForward); },
            {.bytes = bytes_of(transition, contribution, forth), .flop = carried});
  t.backward("carry_states", {back}, [=](Context& ctx) {
    carry_states(ctx, back, transition, d_contribution, from_there, StateDirection::kBackward);
  });
}

Variant of(const std::string& label, const Segments& documents, const Heads& heads = {}, const Numbers& numbers = {}) {
  return {label, [=](Trial& t) { declare(t, documents, heads, numbers); }};
}

Variant parts_of(const std::string& label, const Segments& parts, const Heads& heads = {},
                 const Numbers& numbers = {}) {
  return {label + ", what passes", [=](Trial& t) { declare_parts(t, parts, heads, numbers); }};
}

// Heads whose states hardly decay, heads that forget slowly and heads that forget at once; some tokens not at all.
void decays_of_all_kinds(Tensor uniform) {
  constexpr std::array kStrongest = {1e-3, 0.3, 20.0};
  const int64_t Hv = uniform.dim(1);
  for (int64_t i = 0; i < uniform.numel(); ++i)
    uniform.data<double>()[i] *= i / Hv % 5 == 4 ? 0.0 : -kStrongest[size_t(i % Hv) % kStrongest.size()];
}

// The running sum of the decay reaches -3200 in a chunk: its exponential underflows, the inverse would overflow. In
// fp32 numbers of that size are 2e-4 apart, which is an error of that size in the exponential of their difference.
constexpr Closeness kUnderStrongDecay = {.f32 = {1e-4, 2e-3}, .cpu = {1e-4, 2e-3}};

void some_strong(Tensor log_decay) {
  const int64_t Hv = log_decay.dim(1);
  for (int64_t t = 0; t < log_decay.dim(0); t += 7) log_decay.data<double>()[t * Hv] = -50;
  for (int64_t j = 0; j < Hv; ++j) log_decay.data<double>()[64 * Hv + j] = -1000;
}

void closed_or_open(Tensor beta) {
  for (int64_t i = 0; i < beta.numel(); ++i)
    if (i % 3 != 0) beta.data<double>()[i] = double(i % 3 - 1);
}
void some_without_decay(Tensor log_decay) {
  for (int64_t i = 0; i < log_decay.numel(); i += 5) log_decay.data<double>()[i] = 0;
}

// Every token overwrites what the last one wrote: what is written is the small difference of two numbers that were
// rounded to bf16, which costs a few times the usual error.
void almost_one_key(Tensor k) {
  const int64_t width = k.dim(2);
  for (int64_t i = width; i < k.numel(); ++i)
    k.data<double>()[i] = k.data<double>()[i % width] + 0.02 * k.data<double>()[i];
  unit_rows(k);
}
constexpr Closeness kOfAlmostOneKey = {{3e-5, 6e-4}, {3.6e-2, 0.36}, {2e-5, 6e-4}};

Variants hard() {
  Variants variants;
  // The gradient of log_decay is a difference of sums over the tokens, of which little is left in a short document.
  constexpr Closeness kOfFewTokens = {{2e-5, 1e-4}, {2.4e-2, 6e-2, 0x1p-7}};
  for (int64_t N : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 130})
    variants.push_back(of(concat("1 x ", N), Segments::whole_rows(1, N), {}, {.close = N > 2 ? kUsual : kOfFewTokens}));
  variants.push_back(of("packed", Segments::packed({5, 64, 1, 1, 130, 63, 128, 2}), {2, 4, 128, 128}));
  variants.push_back(of("2 x 70", Segments::whole_rows(2, 70)));
  variants.push_back(
      of("released model", Segments::packed({70, 26}), {16, 32, 128, 128}, {.log_decay = uniform(-0.1, 0)}));
  // More heads of documents than a GPU has multiprocessors, so that blocks go from one to the next.
  variants.push_back(of("many heads of many documents", Segments::packed({70, 26, 64, 1, 130, 3, 65, 17}),
                        {16, 32, 128, 128}, {.log_decay = uniform(-0.1, 0)}));
  for (const Heads& h : {Heads{1, 2, 4, 3},
                         {2, 4, 16, 24},
                         {2, 6, 128, 128},
                         {3, 3, 128, 128},
                         {1, 1, 128, 16},
                         {1, 3, 16, 128},
                         {2, 4, 5, 7},
                         {2, 2, 64, 64},
                         {3, 3, 5, 7}})
    variants.push_back(of(concat("3 and 67 tokens, ", h.Hk, " and ", h.Hv, " heads of ", h.Dk, " and ", h.Dv),
                          Segments::packed({3, 67}), h));
  variants.push_back(
      of("300 tokens, heads of 64", Segments::whole_rows(1, 300), {2, 4, 64, 64}, {.log_decay = uniform(-0.1, 0)}));
  variants.push_back(
      of("slow decay over a long document", Segments::whole_rows(1, 1000), {}, {.log_decay = uniform(-1e-3, 0)}));
  for (const Heads& h : {Heads{}, {1, 2, 24, 40}}) {
    const Segments row = Segments::whole_rows(1, 130);
    variants.push_back(of(concat("strong decay, heads of ", h.Dk), row, h,
                          {.log_decay = uniform(-50, 0), .close = kUnderStrongDecay}));
    variants.push_back(of(concat("some strong decay, heads of ", h.Dk), row, h,
                          {.log_decay = edited(uniform(-0.3, 0), some_strong), .close = kUnderStrongDecay}));
  }
  variants.push_back(
      of("gates closed or fully open", Segments::whole_rows(1, 140), {},
         {.beta = edited(uniform(0, 1), closed_or_open), .log_decay = edited(uniform(-0.1, 0), some_without_decay)}));
  variants.push_back(of("keys that almost coincide", Segments::whole_rows(1, 200), {},
                        {.k = edited(normal(1 / std::sqrt(128.0)), almost_one_key),
                         .beta = constant(1),
                         .log_decay = uniform(-0.01, 0),
                         .close = kOfAlmostOneKey}));
  variants.push_back(of("no tokens", Segments::packed({})));
  // Rows that go on: of one chunk and of several, whole and not, and with documents that end and begin in them.
  Segments ended = Segments::whole_rows(4, 70);
  ended.offsets = {0, 1, 70, 139, 140, 210, 274, 280};
  Numbers slow;
  slow.log_decay = uniform(-0.05, 0);
  const auto add = [&](const std::string& label, const Segments& rows) {
    for (const Heads& h : {Heads{}, {2, 4, 5, 7}}) {
      const std::string of_heads = concat(label, ", heads of ", h.Dk, " and ", h.Dv);
      variants.push_back(of(of_heads, rows, h, slow));
      // Of a state with few keys each token erases much: of what passes hundreds, rounding alone would be left.
      Numbers passing = slow;
      passing.beta = uniform(0, h.Dk < 128 ? 0.05 : 1);
      variants.push_back(parts_of(of_heads, rows, h, passing));
    }
  };
  const Segments of_documents = going_on(ended, {50, 3, 64, 0}, {7, 0, 30, 1});
  add("rows that go on", of_documents);
  add("rows of a chunk that go on", going_on(Segments::whole_rows(3, 64), {9, 64, 1}, {64, 64, 5}));
  add("rows of 200 that go on", going_on(Segments::whole_rows(2, 200), {0, 200}, {200, 1}));
  variants.push_back(of("rows that go on, released model", of_documents, {16, 32, 128, 128}, slow));
  variants.push_back(parts_of("rows that go on, released model", of_documents, {16, 32, 128, 128}, slow));
  return variants;
}

Variants checked(const Sizes& s) {
  if (!s.gdn) return {};
  const std::string label =
      concat("heads of ", s.gdn->key_dim, s.gdn->key_dim == s.gdn->value_dim ? "" : concat(" and ", s.gdn->value_dim));
  const Numbers numbers = {.log_decay = edited(uniform(0, 1), decays_of_all_kinds)};
  Variants variants = {of(label, packed_documents(), heads_of(*s.gdn), numbers)};
  if (!s.shared_rows) return variants;
  variants.push_back(of(label + ", halves of documents", halves_of_documents(2, 100), heads_of(*s.gdn), numbers));
  variants.push_back(parts_of(label, going_on(Segments::whole_rows(2, 100), {100, 100}, {100, 100}), heads_of(*s.gdn),
                              {.log_decay = uniform(-1e-2, 0)}));
  return variants;
}

Variants timed(const Sizes& s) {
  if (!s.gdn) return {};
  const Heads heads = heads_of(*s.gdn);
  // Keys of about length 1; decay as that of a trained model's slower heads.
  const Numbers numbers = {.k = normal(1 / std::sqrt(double(heads.Dk))), .log_decay = uniform(-0.1, 0)};
  if (!s.documents.empty()) return {of("packed", Segments::packed(s.documents), heads, numbers)};
  Variants variants = {of(rows_name(s), whole_rows(s), heads, numbers)};
  if (s.rows > 1) {
    variants.push_back(of(concat("1 x ", s.tokens()), Segments::whole_rows(1, s.tokens()), heads, numbers));
    variants.push_back(of(concat("1 x ", s.tokens(), ", uneven"), uneven_documents(s.tokens()), heads, numbers));
  }
  variants.push_back(of(rows_name(s) + ", packed", mixed_documents(s), heads, numbers));
  for (int64_t tokens : {64, 16})
    variants.push_back(
        of(concat("1 x ", s.tokens(), ", documents of ", tokens), equal_documents(s.tokens(), tokens), heads, numbers));
  if (s.shared_rows) {
    const std::vector<int64_t> beyond(size_t(s.rows), s.row_tokens);
    const Segments parts = going_on(whole_rows(s), beyond, beyond);
    variants.push_back(of("parts of rows, " + rows_name(s), parts, heads, numbers));
    variants.push_back(parts_of("parts of rows, " + rows_name(s), parts, heads, numbers));
  }
  return variants;
}

Implementation implementation(Context& ctx, const Sizes& s) {
  const Heads h = heads_of(*s.gdn);
  const Tensor keys = shaped(ctx, s.activation, {s.tokens(), h.Hk, h.Dk});
  const Tensor gates = shaped(ctx, wide_dtype(s.activation), {s.tokens(), h.Hv});
  return gated_delta_rule_implementation(
      ctx, {keys, keys, shaped(ctx, s.activation, {s.tokens(), h.Hv, h.Dv}), gates, gates});
}

}  // namespace

OperatorCase gated_delta_rule_case() { return {"gated_delta_rule", hard, checked, timed, implementation}; }

}  // namespace braid::cases
