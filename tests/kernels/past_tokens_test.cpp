// A text that comes in pieces, each with what the operators keep of the tokens before it, is the whole text.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/gdn_inputs.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kB = 2, kT = 150;
// Row 0 is one document; row 1 has a boundary inside the first piece and one between two pieces.
const std::vector<int64_t> kDocuments = {0, 150, 195, 240, 300};
const std::vector<int64_t> kCuts = {0, 70, 71, 73, 90, 150};

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
    return s;
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

TEST(PastTokens, DeltaRuleGoesOnFromItsState) {
  constexpr int64_t N = kB * kT, Hk = 2, Hv = 4, Dk = 8, Dv = 6;
  Context ctx = Context::cpu();
  auto unit = [](Tensor t) {
    for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] /= std::sqrt(double(Dk));
    return t;
  };
  const DeltaRuleInputs in = {unit(random_f64({N, Hk, Dk}, 1)), unit(random_f64({N, Hk, Dk}, 2)),
                              random_f64({N, Hv, Dv}, 3), uniform_f64({N, Hv}, 0, 1, 4),
                              uniform_f64({N, Hv}, -0.1, 0, 5)};
  Tensor expected = poisoned({N, Hv, Dv}, DType::kF64), last = poisoned({kB, Hv, Dk, Dv}, DType::kF64);
  gated_delta_rule_forward(ctx, expected, in, whole(), {{}, last});

  Tensor state = zeros_f64({kB, Hv, Dk, Dv});
  for_each_piece([&](const Piece& piece) {
    Tensor o = poisoned({kB * piece.length(), Hv, Dv}, DType::kF64), next = poisoned(state.shape(), DType::kF64);
    gated_delta_rule_forward(ctx, o,
                             {piece.of(in.q), piece.of(in.k), piece.of(in.v), piece.of(in.beta), piece.of(in.log_decay)},
                             piece.segments(), {where_past(piece, state), next});
    expect_close(o, piece.of(expected), 1e-13, concat("tokens from ", piece.begin).c_str());
    state = next;
  });
  expect_close(state, last, 1e-13, "state");
}

TEST(PastTokens, ConvolutionReadsItsHalo) {
  constexpr GdnDims d{.key_heads = 2, .value_heads = 4, .key_dim = 3, .value_dim = 5, .conv_kernel = 4};
  constexpr int64_t N = kB * kT, H = d.conv_kernel - 1;
  Context ctx = Context::cpu();
  const GdnProjections x = {random_f64({N, d.qkvz_columns()}, 1), random_f64({N, d.ba_columns()}, 2)};
  const GdnInputWeights weights = {random_f64({d.conv_channels(), 1, d.conv_kernel}, 3),
                                   random_f64({d.value_heads}, 4), random_f64({d.value_heads}, 5)};
  auto outputs = [&](int64_t n) {
    auto unwritten = [](Shape shape) { return poisoned(shape, DType::kF64); };
    return GdnInputs{{unwritten({n, d.key_heads, d.key_dim}), unwritten({n, d.key_heads, d.key_dim}),
                      unwritten({n, d.value_heads, d.value_dim}), unwritten({n, d.value_heads}),
                      unwritten({n, d.value_heads})},
                     unwritten({n, d.key_heads}),
                     unwritten({n, d.key_heads})};
  };
  const GdnInputs expected = outputs(N);
  gdn_inputs_forward(ctx, expected, x, weights, whole(), d);
  for_each_piece([&](const Piece& piece) {
    Tensor halo = zeros_f64({kB, H, d.qkvz_columns()});
    for (int64_t b = 0; b < kB; ++b)
      for (int64_t back = 1; back <= std::min(H, piece.past(b)); ++back) {
        const int64_t token = b * kT + piece.begin - back;
        std::memcpy(halo.rows(b, b + 1).view({H, d.qkvz_columns()}).rows(H - back, H - back + 1).raw(),
                    x.qkvz.rows(token, token + 1).raw(), x.qkvz.rows(0, 1).bytes());
      }
    const GdnInputs out = outputs(kB * piece.length());
    gdn_inputs_forward(ctx, out, {piece.of(x.qkvz), piece.of(x.ba)}, weights, piece.segments(), d, halo);
    const std::string where = concat("tokens from ", piece.begin);
    expect_close(out.rule.q, piece.of(expected.rule.q), 1e-15, where.c_str());
    expect_close(out.rule.k, piece.of(expected.rule.k), 1e-15, where.c_str());
    expect_close(out.rule.v, piece.of(expected.rule.v), 1e-15, where.c_str());
    expect_same_bits(out.rule.beta, piece.of(expected.rule.beta), where.c_str());
    expect_close(out.q_rstd, piece.of(expected.q_rstd), 1e-15, where.c_str());
  });
}

TEST(PastTokens, PositionsGoOnAndKeysAreThoseOfTheWholeDocument) {
  constexpr int64_t N = kB * kT, Hq = 4, Hkv = 2, Dh = 8;
  const AttentionDims dims{Hq, Hkv, Dh, 4, 100, 1e-6};
  Context ctx = Context::cpu();
  const AttentionProjections x = {random_f64({N, Hq, 2, Dh}, 1), random_f64({N, Hkv, Dh}, 2)};
  const AttentionInputWeights weights = {random_f64({Dh}, 3), random_f64({Dh}, 4)};
  const Tensor v = random_f64({N, Hkv, Dh}, 5);
  auto unwritten = [](Shape shape) { return poisoned(shape, DType::kF64); };
  auto inputs = [&](int64_t n) {
    return AttentionInputs{unwritten({n, Hq, Dh}), unwritten({n, Hkv, Dh}), unwritten({n, Hq}), unwritten({n, Hkv})};
  };
  auto outputs = [&](int64_t n) {
    return AttentionOutputs{unwritten({n, Hq, Dh}), unwritten({n, Hq, Dh}), unwritten({n, Hq})};
  };
  const AttentionInputs all = inputs(N);
  const AttentionOutputs expected = outputs(N);
  attention_inputs_forward(ctx, all, x, weights, whole(), dims);
  attention_forward(ctx, expected, {all.q, all.k, v, x.q_gate}, whole());

  for_each_piece([&](const Piece& piece) {
    const int64_t n = kB * piece.length();
    const std::vector<int64_t> past = {piece.past(0), piece.past(1)};
    const std::string where = concat("tokens from ", piece.begin);
    const AttentionInputs in = inputs(n);
    attention_inputs_forward(ctx, in, {piece.of(x.q_gate), piece.of(x.k)}, weights, piece.segments(), dims, past);
    expect_same_bits(in.q, piece.of(all.q), where.c_str());
    expect_same_bits(in.k, piece.of(all.k), where.c_str());

    auto with_past = [&](const Tensor& t) {
      Tensor keys = allocate({n + past[0] + past[1], Hkv, Dh}, DType::kF64);
      int64_t to = 0;
      for (int64_t b = 0; b < kB; ++b) {
        const int64_t count = past[b] + piece.length(), first = b * kT + piece.begin - past[b];
        std::memcpy(keys.rows(to, to + count).raw(), t.rows(first, first + count).raw(), t.rows(0, count).bytes());
        to += count;
      }
      return keys;
    };
    const AttentionOutputs out = outputs(n);
    attention_forward(ctx, out, {in.q, with_past(all.k), with_past(v), piece.of(x.q_gate), past}, piece.segments());
    expect_close(out.y, piece.of(expected.y), 1e-13, where.c_str());
    expect_close(out.lse, piece.of(expected.lse), 1e-13, where.c_str());
  });
}

TEST(PastTokens, AreRefusedInAnotherNumberThanTheKeys) {
  Context ctx = Context::cpu();
  auto t = [](Shape shape) { return zeros_f64(shape); };
  AttentionTensors in = {t({3, 2, 4}), t({5, 2, 4}), t({5, 2, 4}), t({3, 2, 2, 4}), {1}};
  EXPECT_THROW(attention_forward(ctx, {t({3, 2, 4}), t({3, 2, 4}), t({3, 2})}, in, Segments::whole_rows(1, 3)),
               ShapeError);
  in.past_tokens = {1, 1};
  EXPECT_THROW(attention_forward(ctx, {t({3, 2, 4}), t({3, 2, 4}), t({3, 2})}, in, Segments::whole_rows(1, 3)),
               ShapeError);
}

}  // namespace
}  // namespace braid
