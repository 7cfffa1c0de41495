// A text that comes in pieces, each with what the operators need of the tokens before it, is the whole text; and so are
// its gradients, with what they need of the tokens behind it.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/core/copy.h"
#include "kernels/gdn_inputs.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kB = 2, kT = 330, kN = kB * kT;
// Row 0 is one document; row 1 has a boundary inside the first piece and one between two pieces. The last piece is
// longer than a tile of queries and lies across the end of a tile of keys.
const std::vector<int64_t> kDocuments = {0, 330, 375, 420, 660};
const std::vector<int64_t> kCuts = {0, 70, 71, 73, 90, 230, 330};

Segments whole() {
  Segments s = Segments::whole_rows(kB, kT);
  s.offsets = kDocuments;
  return s;
}

// Tokens [begin, end) of every row.
struct Piece {
  int64_t begin, end;
  int64_t length() const { return end - begin; }

  Tensor of(const Tensor& t) const {
    Shape shape = {kB * length()};
    for (int axis = 1; axis < t.rank(); ++axis) shape.append(t.dim(axis));
    Tensor part = allocate(shape, t.dtype());
    for (int64_t b = 0; b < kB; ++b)
      std::memcpy(part.rows(b * length(), (b + 1) * length()).raw(), t.rows(b * kT + begin, b * kT + end).raw(),
                  t.rows(0, length()).bytes());
    return part;
  }
  Segments segments() const {
    Segments s = Segments::whole_rows(kB, length());
    s.offsets = {0};
    for (int64_t b = 0; b < kB; ++b)
      for (size_t d = 1; d < kDocuments.size(); ++d)
        if (const int64_t at = std::min(kDocuments[d] - b * kT, end); at > begin && kDocuments[d - 1] < b * kT + end)
          s.offsets.push_back(b * length() + at - begin);
    for (int64_t b = 0; b < kB; ++b) {
      s.tokens_before.push_back(past(b));
      const int64_t token = b * kT + end - 1;
      s.tokens_behind.push_back(*std::upper_bound(kDocuments.begin(), kDocuments.end(), token) - token - 1);
    }
    return s;
  }
  // Writes what belongs to the piece into the whole, or adds it.
  void put(Tensor whole, const Tensor& part) const {
    for (int64_t b = 0; b < kB; ++b)
      std::memcpy(whole.rows(b * kT + begin, b * kT + end).raw(), part.rows(b * length(), (b + 1) * length()).raw(),
                  part.rows(0, length()).bytes());
  }
  // Tokens of the document at the start of the row that lie before the piece.
  int64_t past(int64_t row) const {
    const int64_t token = row * kT + begin;
    return token - *std::prev(std::upper_bound(kDocuments.begin(), kDocuments.end() - 1, token));
  }
};

template <class Body>
void for_each_piece(Body&& body) {
  for (size_t i = 0; i + 1 < kCuts.size(); ++i) body(Piece{kCuts[i], kCuts[i + 1]});
}

// What a row brings from before the piece, where its document does; zeros elsewhere.
Tensor where_past(const Piece& piece, Tensor state) {
  for (int64_t b = 0; b < kB; ++b)
    if (piece.past(b) == 0) std::memset(state.rows(b, b + 1).raw(), 0, state.rows(b, b + 1).bytes());
  return state;
}

constexpr int64_t kHk = 2, kHv = 4, kDk = 8, kDv = 6;

DeltaRuleInputs rule_inputs() {
  auto unit = [](Tensor t) {
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] /= std::sqrt(double(kDk));
    return t;
  };
  return {unit(random_f64({kN, kHk, kDk}, 1)), unit(random_f64({kN, kHk, kDk}, 2)), random_f64({kN, kHv, kDv}, 3),
          uniform_f64({kN, kHv}, 0, 1, 4), uniform_f64({kN, kHv}, -0.1, 0, 5)};
}
DeltaRuleInputs cut(const Piece& piece, const DeltaRuleInputs& in) {
  return {piece.of(in.q), piece.of(in.k), piece.of(in.v), piece.of(in.beta), piece.of(in.log_decay)};
}
Tensor like(const Tensor& t) { return poisoned(t.shape(), t.dtype()); }
DeltaRuleInputs like(const DeltaRuleInputs& in) {
  return {like(in.q), like(in.k), like(in.v), like(in.beta), like(in.log_decay)};
}
void expect_close(const DeltaRuleInputs& actual, const DeltaRuleInputs& expected, double relative) {
  testing::expect_close(actual.q, expected.q, relative, "q");
  testing::expect_close(actual.k, expected.k, relative, "k");
  testing::expect_close(actual.v, expected.v, relative, "v");
  testing::expect_close(actual.beta, expected.beta, relative, "beta");
  testing::expect_close(actual.log_decay, expected.log_decay, relative, "log_decay");
}

TEST(PastTokens, DeltaRuleGoesOnFromItsState) {
  Context ctx = Context::cpu();
  const DeltaRuleInputs in = rule_inputs();
  Tensor expected = like(in.v), last = poisoned({kB, kHv, kDk, kDv}, DType::kF64), last_alone = like(last);
  gated_delta_rule_forward(ctx, expected, in, whole(), {{}, last});
  gated_delta_rule_forward(ctx, {}, in, whole(), {{}, last_alone});
  expect_same_bits(last_alone, last);

  Tensor state = zeros_f64(last.shape());
  for_each_piece([&](const Piece& piece) {
    const DeltaRuleInputs part = cut(piece, in);
    Tensor o = like(part.v), next = like(state);
    gated_delta_rule_forward(ctx, o, part, piece.segments(), {where_past(piece, state), next});
    testing::expect_close(o, piece.of(expected), 1e-13, concat("tokens from ", piece.begin).c_str());
    state = next;
  });
  testing::expect_close(state, last, 1e-13, "state");
}

// No piece waits for another: each says how states pass through it, and what it adds.
TEST(PastTokens, DeltaRuleOfAllPiecesAtOnceIsTheRecurrenceOfTheWhole) {
  Context ctx = Context::cpu();
  const DeltaRuleInputs in = rule_inputs();
  const Tensor d_o = random_f64(in.v.shape(), 6);
  Tensor expected = like(in.v);
  const DeltaRuleInputs expected_d = like(in);
  gated_delta_rule_recurrent_forward(ctx, expected, in, whole());
  gated_delta_rule_recurrent_backward(ctx, expected_d, d_o, in, whole());

  const auto num_pieces = static_cast<int64_t>(kCuts.size()) - 1;
  Tensor transitions = poisoned({num_pieces * kB, kHv, kDk, kDk}, DType::kF64);
  Tensor forward = poisoned({num_pieces * kB, kHv, kDk, kDv}, DType::kF64), backward = like(forward);
  auto each = [&](auto&& body) {
    int64_t i = 0;
    for_each_piece([&](const Piece& piece) {
      body(piece, i * kB, (i + 1) * kB);
      ++i;
    });
  };
  auto clear_where = [](Tensor states, auto&& nothing_passes) {
    for (int64_t b = 0; b < kB; ++b)
      if (nothing_passes(b)) std::memset(states.rows(b, b + 1).raw(), 0, states.rows(b, b + 1).bytes());
  };
  each([&](const Piece& piece, int64_t begin, int64_t end) {
    const DeltaRuleInputs part = cut(piece, in);
    const Segments segments = piece.segments();
    gated_delta_rule_transition(ctx, transitions.rows(begin, end), part, segments);
    gated_delta_rule_forward(ctx, {}, part, segments, {{}, forward.rows(begin, end)});
    gated_delta_rule_backward(ctx, {}, piece.of(d_o), part, segments, {{}, backward.rows(begin, end), {}});
    clear_where(forward.rows(begin, end), [&](int64_t b) { return segments.behind(b) == 0; });
    clear_where(backward.rows(begin, end), [&](int64_t b) { return segments.before(b) == 0; });
  });
  Tensor o = like(in.v);
  const DeltaRuleInputs d_in = like(in);
  each([&](const Piece& piece, int64_t begin, int64_t) {
    Tensor initial = poisoned({kB, kHv, kDk, kDv}, DType::kF64), d_final = like(initial), d_initial = like(initial);
    std::vector<std::vector<int64_t>> before(kB), behind(kB);
    for (int64_t b = 0; b < kB; ++b) {
      for (int64_t part = b; part < begin; part += kB) before[b].push_back(part);
      for (int64_t part = (num_pieces - 1) * kB + b; part >= begin + kB; part -= kB) behind[b].push_back(part);
    }
    carry_states(ctx, initial, transitions, forward, before, StateDirection::kForward);
    carry_states(ctx, d_final, transitions, backward, behind, StateDirection::kBackward);
    const DeltaRuleInputs part = cut(piece, in), d_part = like(part);
    Tensor o_part = like(part.v);
    gated_delta_rule_forward(ctx, o_part, part, piece.segments(), {initial, {}});
    gated_delta_rule_backward(ctx, d_part, piece.of(d_o), part, piece.segments(), {initial, d_initial, d_final});
    piece.put(o, o_part);
    piece.put(d_in.q, d_part.q);
    piece.put(d_in.k, d_part.k);
    piece.put(d_in.v, d_part.v);
    piece.put(d_in.beta, d_part.beta);
    piece.put(d_in.log_decay, d_part.log_decay);
  });
  testing::expect_close(o, expected, 1e-12, "o");
  expect_close(d_in, expected_d, 1e-12);
}

TEST(PastTokens, StatesOfTheDeltaRuleHaveTheGradientsOfDifferences) {
  Context ctx = Context::cpu();
  const Piece piece{90, 110};
  const DeltaRuleInputs in = cut(piece, rule_inputs()), d_in = like(in);
  const Segments segments = piece.segments();
  const Tensor d_o = random_f64(in.v.shape(), 6), initial = random_f64({kB, kHv, kDk, kDv}, 7);
  const Tensor d_final = random_f64(initial.shape(), 8);
  Tensor o = like(in.v), last = like(initial), d_initial = like(initial);
  auto loss = [&] {
    gated_delta_rule_forward(ctx, o, in, segments, {initial, last});
    return dot(o, d_o) + dot(last, d_final);
  };
  loss();
  gated_delta_rule_backward(ctx, d_in, d_o, in, segments, {initial, d_initial, d_final});
  expect_gradient(loss, initial, d_initial);
  expect_gradient(loss, in.k, d_in.k);
  expect_gradient(loss, in.log_decay, d_in.log_decay);
  Tensor alone = like(initial);
  gated_delta_rule_backward(ctx, {}, d_o, in, segments, {{}, alone, d_final});
  testing::expect_close(alone, d_initial, 1e-14, "d_initial alone");
}

constexpr GdnDims kGdn{.key_heads = 2, .value_heads = 4, .key_dim = 3, .value_dim = 5, .conv_kernel = 4};
constexpr int64_t kHalo = kGdn.conv_kernel - 1;

// The rows before a piece, those of other documents too, which must make no difference.
Tensor halo_of(const Piece& piece, const Tensor& qkvz) {
  Tensor halo = random_f64({kB, kHalo, kGdn.qkvz_columns()}, 11);
  for (int64_t b = 0; b < kB; ++b) {
    const int64_t count = std::min(kHalo, piece.begin), end = b * kT + piece.begin;
    std::memcpy(halo.rows(b, b + 1).view({kHalo, kGdn.qkvz_columns()}).rows(kHalo - count, kHalo).raw(),
                qkvz.rows(end - count, end).raw(), qkvz.rows(0, count).bytes());
  }
  return halo;
}

TEST(PastTokens, ConvolutionReadsItsHaloAndGivesItsGradientBack) {
  constexpr GdnDims d = kGdn;
  Context ctx = Context::cpu();
  const GdnProjections x = {random_f64({kN, d.qkvz_columns()}, 1), random_f64({kN, d.ba_columns()}, 2)};
  const GdnInputWeights weights = {random_f64({d.conv_channels(), 1, d.conv_kernel}, 3), random_f64({d.value_heads}, 4),
                                   random_f64({d.value_heads}, 5)};
  auto outputs = [&](int64_t n) {
    auto unwritten = [](Shape shape) { return poisoned(shape, DType::kF64); };
    return GdnInputs{
        {unwritten({n, d.key_heads, d.key_dim}), unwritten({n, d.key_heads, d.key_dim}),
         unwritten({n, d.value_heads, d.value_dim}), unwritten({n, d.value_heads}), unwritten({n, d.value_heads})},
        unwritten({n, d.key_heads}),
        unwritten({n, d.key_heads})};
  };
  const GdnInputs expected = outputs(kN);
  gdn_inputs_forward(ctx, expected, x, weights, whole(), d);
  for_each_piece([&](const Piece& piece) {
    const GdnInputs out = outputs(kB * piece.length());
    gdn_inputs_forward(ctx, out, {piece.of(x.qkvz), piece.of(x.ba)}, weights, piece.segments(), d,
                       halo_of(piece, x.qkvz));
    const std::string where = concat("tokens from ", piece.begin);
    testing::expect_close(out.rule.q, piece.of(expected.rule.q), 1e-15, where.c_str());
    testing::expect_close(out.rule.k, piece.of(expected.rule.k), 1e-15, where.c_str());
    testing::expect_close(out.rule.v, piece.of(expected.rule.v), 1e-15, where.c_str());
    expect_same_bits(out.rule.beta, piece.of(expected.rule.beta), where.c_str());
    testing::expect_close(out.q_rstd, piece.of(expected.q_rstd), 1e-15, where.c_str());
  });

  const DeltaRuleInputs d_out = {random_f64({kN, d.key_heads, d.key_dim}, 6),
                                 random_f64({kN, d.key_heads, d.key_dim}, 7),
                                 random_f64({kN, d.value_heads, d.value_dim}, 8), random_f64({kN, d.value_heads}, 9),
                                 random_f64({kN, d.value_heads}, 10)};
  auto no_weights = [&] {
    return GdnInputWeights{zeros_f64(weights.conv.shape()), zeros_f64(weights.a_log.shape()),
                           zeros_f64(weights.dt_bias.shape())};
  };
  // The columns of z, which others write, hold 0.
  const GdnProjections expected_d = {zeros_f64(x.qkvz.shape()), zeros_f64(x.ba.shape())};
  const GdnProjections d_x = {zeros_f64(x.qkvz.shape()), zeros_f64(x.ba.shape())};
  const GdnInputWeights expected_d_weights = no_weights(), d_weights = no_weights();
  gdn_inputs_backward(ctx, expected_d, expected_d_weights, d_out, expected, x, weights, whole(), d);
  Tensor d_halo_behind;  // of the piece behind the one in work
  for (const Piece& piece : {Piece{90, kT}, Piece{73, 90}, Piece{44, 73}, Piece{0, 44}}) {
    const GdnInputs out = outputs(kB * piece.length());
    const GdnProjections part = {piece.of(x.qkvz), piece.of(x.ba)};
    const GdnProjections d_part = {zeros_f64(part.qkvz.shape()), zeros_f64(part.ba.shape())};
    const Tensor halo = halo_of(piece, x.qkvz);
    Tensor d_halo = like(halo);
    gdn_inputs_forward(ctx, out, part, weights, piece.segments(), d, halo);
    gdn_inputs_backward(ctx, d_part, d_weights, cut(piece, d_out), out, part, weights, piece.segments(), d,
                        {halo, d_halo});
    for (int64_t b = 0; d_halo_behind.defined() && b < kB; ++b) {
      const int64_t end = (b + 1) * piece.length();
      add(ctx, d_part.qkvz.rows(end - kHalo, end), d_halo_behind.rows(b, b + 1).view({kHalo, d.qkvz_columns()}));
    }
    d_halo_behind = d_halo;
    piece.put(d_x.qkvz, d_part.qkvz);
    piece.put(d_x.ba, d_part.ba);
  }
  testing::expect_close(d_x.qkvz, expected_d.qkvz, 1e-14, "d_qkvz");
  expect_same_bits(d_x.ba, expected_d.ba, "d_ba");
  testing::expect_close(d_weights.conv, expected_d_weights.conv, 1e-13, "d_conv");
  testing::expect_close(d_weights.a_log, expected_d_weights.a_log, 1e-13, "d_a_log");
  testing::expect_close(d_weights.dt_bias, expected_d_weights.dt_bias, 1e-13, "d_dt_bias");
}

TEST(PastTokens, AreRefusedWithoutTheirHalo) {
  Context ctx = Context::cpu();
  auto t = [](Shape shape) { return zeros_f64(shape); };
  constexpr GdnDims d = kGdn;
  Segments segments = Segments::whole_rows(1, 2);
  segments.tokens_before = {5};
  const GdnInputs out = {{t({2, d.key_heads, d.key_dim}), t({2, d.key_heads, d.key_dim}),
                          t({2, d.value_heads, d.value_dim}), t({2, d.value_heads}), t({2, d.value_heads})},
                         t({2, d.key_heads}),
                         t({2, d.key_heads})};
  EXPECT_THROW(gdn_inputs_forward(ctx, out, {t({2, d.qkvz_columns()}), t({2, d.ba_columns()})},
                                  {t({d.conv_channels(), 1, d.conv_kernel}), t({4}), t({4})}, segments, d),
               ShapeError);
}

TEST(PastTokens, PositionsGoOnAndKeysAreThoseOfTheWholeDocument) {
  constexpr int64_t Hq = 4, Hkv = 2, Dh = 8;
  const AttentionDims dims{Hq, Hkv, Dh, 4, 100, 1e-6};
  Context ctx = Context::cpu();
  const AttentionProjections x = {random_f64({kN, Hq, 2, Dh}, 1), random_f64({kN, Hkv, Dh}, 2)};
  const AttentionInputWeights weights = {random_f64({Dh}, 3), random_f64({Dh}, 4)};
  const Tensor v = random_f64({kN, Hkv, Dh}, 5), d_y = random_f64({kN, Hq, Dh}, 6);
  auto unwritten = [](Shape shape) { return poisoned(shape, DType::kF64); };
  auto inputs = [&](int64_t n) {
    return AttentionInputs{unwritten({n, Hq, Dh}), unwritten({n, Hkv, Dh}), unwritten({n, Hq}), unwritten({n, Hkv})};
  };
  auto outputs = [&](int64_t n) {
    return AttentionOutputs{unwritten({n, Hq, Dh}), unwritten({n, Hq, Dh}), unwritten({n, Hq})};
  };
  auto gradients = [&](int64_t n, int64_t keys) {
    return AttentionGradients{unwritten({n, Hq, Dh}), unwritten({keys, Hkv, Dh}), unwritten({keys, Hkv, Dh}),
                              zeros_f64({n, Hq, 2, Dh})};
  };
  auto backward = [&](const AttentionGradients& d, const AttentionInputWeights& d_weights, const AttentionInputs& in,
                      const AttentionProjections& projections, const Tensor& d_k, const Segments& segments) {
    AttentionProjections d_x = {d.q_gate, unwritten(in.k.shape())};
    attention_inputs_backward(ctx, d_x, d_weights, d.q, d_k, in, projections, weights, segments, dims);
    return d_x;
  };
  const AttentionInputs all = inputs(kN);
  const AttentionOutputs expected = outputs(kN);
  const AttentionGradients expected_d = gradients(kN, kN);
  const AttentionInputWeights expected_d_weights = {zeros_f64({Dh}), zeros_f64({Dh})};
  attention_inputs_forward(ctx, all, x, weights, whole(), dims);
  attention_forward(ctx, expected, {all.q, all.k, v, x.q_gate}, whole());
  attention_backward(ctx, expected_d, d_y, {all.q, all.k, v, x.q_gate}, expected, whole());
  const AttentionProjections expected_d_x = backward(expected_d, expected_d_weights, all, x, expected_d.k, whole());

  Tensor d_k = zeros_f64(v.shape()), d_v = zeros_f64(v.shape());
  const AttentionInputWeights d_weights = {zeros_f64({Dh}), zeros_f64({Dh})};
  for_each_piece([&](const Piece& piece) {
    const int64_t n = kB * piece.length();
    const Segments segments = piece.segments();
    const std::string where = concat("tokens from ", piece.begin);
    const AttentionInputs in = inputs(n);
    const AttentionProjections part = {piece.of(x.q_gate), piece.of(x.k)};
    attention_inputs_forward(ctx, in, part, weights, segments, dims);
    expect_same_bits(in.q, piece.of(all.q), where.c_str());
    expect_same_bits(in.k, piece.of(all.k), where.c_str());

    // body(keys of the piece, their rows of the whole) for every row of the batch
    auto each_row = [&](auto&& body) {
      for (int64_t b = 0, to = 0; b < kB; ++b) {
        const int64_t count = segments.before(b) + piece.length(), first = b * kT + piece.begin - segments.before(b);
        body(to, to + count, first, first + count);
        to += count;
      }
    };
    const int64_t num_keys = n + segments.before(0) + segments.before(1);
    auto with_past = [&](const Tensor& t) {
      Tensor keys = unwritten({num_keys, Hkv, Dh});
      each_row([&](int64_t begin, int64_t end, int64_t from, int64_t to) {
        std::memcpy(keys.rows(begin, end).raw(), t.rows(from, to).raw(), keys.rows(begin, end).bytes());
      });
      return keys;
    };
    const AttentionTensors tensors = {in.q, with_past(all.k), with_past(v), part.q_gate};
    const AttentionOutputs out = outputs(n);
    attention_forward(ctx, out, tensors, segments);
    testing::expect_close(out.y, piece.of(expected.y), 1e-13, where.c_str());
    testing::expect_close(out.lse, piece.of(expected.lse), 1e-13, where.c_str());

    const AttentionGradients d = gradients(n, num_keys);
    attention_backward(ctx, d, piece.of(d_y), tensors, out, segments);
    testing::expect_close(d.q, piece.of(expected_d.q), 1e-13, where.c_str());
    each_row([&](int64_t begin, int64_t end, int64_t from, int64_t to) {
      for (const auto& [sum, part_of_it] :
           {std::pair(d_k.rows(from, to), d.k.rows(begin, end)), {d_v.rows(from, to), d.v.rows(begin, end)}})
        for (int64_t i = 0; i < sum.numel(); ++i)
          const_cast<double*>(sum.data<double>())[i] += part_of_it.data<double>()[i];
    });
    const AttentionProjections d_x = backward(d, d_weights, in, part, piece.of(expected_d.k), segments);
    testing::expect_close(d_x.q_gate, piece.of(expected_d_x.q_gate), 1e-13, where.c_str());
    testing::expect_close(d_x.k, piece.of(expected_d_x.k), 1e-13, where.c_str());
  });
  testing::expect_close(d_k, expected_d.k, 1e-13, "d_k");
  testing::expect_close(d_v, expected_d.v, 1e-13, "d_v");
  testing::expect_close(d_weights.q_norm, expected_d_weights.q_norm, 1e-13, "d_q_norm");
  testing::expect_close(d_weights.k_norm, expected_d_weights.k_norm, 1e-13, "d_k_norm");
}

TEST(PastTokens, AreRefusedInAnotherNumberThanTheKeys) {
  Context ctx = Context::cpu();
  auto t = [](Shape shape) { return zeros_f64(shape); };
  const AttentionTensors in = {t({3, 2, 4}), t({5, 2, 4}), t({5, 2, 4}), t({3, 2, 2, 4})};
  Segments segments = Segments::whole_rows(1, 3);
  segments.tokens_before = {1};
  EXPECT_THROW(attention_forward(ctx, {t({3, 2, 4}), t({3, 2, 4}), t({3, 2})}, in, segments), ShapeError);
}

}  // namespace
}  // namespace braid
