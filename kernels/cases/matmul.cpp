#include "kernels/matmul.h"

#include "kernels/cases/operator_case.h"

namespace braid::cases {
namespace {

using enum Storage;
constexpr auto kNo = Accumulate::kNo, kYes = Accumulate::kYes;

void declare_product(Trial& t, int64_t M, int64_t N, int64_t K, Transpose ta, Transpose tb) {
  const Var a = t.input("a", ta == Transpose::kNo ? Shape{M, K} : Shape{K, M}, normal());
  const Var b = t.input("b", tb == Transpose::kNo ? Shape{K, N} : Shape{N, K}, normal());
  const Var c = t.output("c", {M, N});
  t.forward("matmul", {c}, [=](Context& ctx) { matmul(ctx, c, a, ta, b, tb); },
            {.bytes = bytes_of(a, b, c), .flop = 2.0 * double(M) * double(N) * double(K)});
}

void declare_hard_product(Trial& t, int64_t M, int64_t N, int64_t K, Transpose ta, Transpose tb) {
  declare_product(t, M, N, K, ta, tb);
  const Tensor a = t.slot("a").tensor, b = t.slot("b").tensor;
  const Var wide = t.output("c in the wide dtype", {M, N}, kWide), sum = t.sum("c that is added to", {M, N}, kWide);
  t.forward("matmul", {wide}, [=](Context& ctx) { matmul(ctx, wide, a, ta, b, tb); });
  t.forward("matmul", {sum}, [=](Context& ctx) { matmul(ctx, sum, a, ta, b, tb, kYes); });
}

// A linear layer, and what its calls look like in the model.
struct Linear {
  std::string name;
  int64_t out, in;  // O, I
  Storage y = kActivation;
  Accumulate forward = kNo, backward_input = kNo;
};

void declare_linear(Trial& t, int64_t N, const Linear& layer) {
  const int64_t O = layer.out, I = layer.in;
  auto written = [&](const char* name, Shape shape, Storage storage, Accumulate accumulate) {
    return accumulate == kYes ? t.sum(name, shape, storage) : t.output(name, shape, storage);
  };
  auto passes = [](Accumulate accumulate) { return accumulate == kYes ? 2.0 : 1.0; };
  const double flop = 2.0 * double(N) * double(O) * double(I);
  const auto [forward, backward_input] = std::pair(layer.forward, layer.backward_input);
  const Var x = t.input("x", {N, I}, normal()), weight = t.input("weight", {O, I}, normal(1 / std::sqrt(double(I))));
  const Var y = written("y", {N, O}, layer.y, forward);
  t.forward("linear_forward", {y}, [=](Context& ctx) { linear_forward(ctx, y, x, weight, forward); },
            {.bytes = bytes_of(x, weight) + passes(forward) * bytes_of(y), .flop = flop});

  const Var d_y = t.input("d_y", {N, O}, normal()), d_x = written("d_x", {N, I}, kActivation, backward_input);
  const Var d_weight = t.sum("d_weight", {O, I}, kWide, kWideSum);
  t.backward("linear_backward_input", {d_x},
             [=](Context& ctx) { linear_backward_input(ctx, d_x, d_y, weight, backward_input); },
             {.bytes = bytes_of(d_y, weight) + passes(backward_input) * bytes_of(d_x), .flop = flop});
  t.backward("linear_backward_weight", {d_weight}, [=](Context& ctx) { linear_backward_weight(ctx, d_weight, d_y, x); },
             {.bytes = bytes_of(d_y, x, d_weight, d_weight), .flop = flop});
  t.loss(y, d_y);
  t.gradient(x, d_x);
  t.gradient(weight, d_weight);
}

// Every way in which the model calls a layer.
Variants each_call(const std::string& label, int64_t N, int64_t O, int64_t I) {
  Variants variants;
  for (const Linear& layer : {Linear{label, O, I},
                              {label + ", wide, d_x added", O, I, kWide, kNo, kYes},
                              {label + ", y added", O, I, kActivation, kYes, kNo}})
    variants.push_back({layer.name, [=](Trial& t) { declare_linear(t, N, layer); }});
  return variants;
}

Variants hard() {
  Variants variants;
  for (const auto& [M, N, K] : {std::array<int64_t, 3>{64, 96, 128},
                                {1, 64, 40},
                                {37, 1, 24},
                                {130, 33, 7},
                                {63, 65, 1},
                                {257, 130, 64},
                                {7, 9, 2500}})
    for (Transpose ta : {Transpose::kNo, Transpose::kYes})
      for (Transpose tb : {Transpose::kNo, Transpose::kYes})
        variants.push_back({concat(M, " x ", N, " x ", K, ta == Transpose::kYes ? ", a" : "",
                                   tb == Transpose::kYes ? ", b" : "", " as stored"),
                            [=](Trial& t) { declare_hard_product(t, M, N, K, ta, tb); }});
  for (const auto& [N, O, I] :
       {std::array<int64_t, 3>{5, 3, 4}, {200, 48, 72}, {1, 64, 63}, {65, 130, 40}, {1500, 300, 40}, {0, 8, 16}}) {
    const Variants calls = each_call(concat("linear ", N, " x ", O, " x ", I), N, O, I);
    variants.insert(variants.end(), calls.begin(), calls.end());
  }
  return variants;
}

Variants checked(const Sizes& s) {
  Variants variants = each_call(concat("width ", s.hidden), kCheckedTokens, 264, s.hidden);
  variants.push_back({concat("width ", s.hidden), [=](Trial& t) {
                        declare_product(t, kCheckedTokens, 264, s.hidden, Transpose::kNo, Transpose::kYes);
                      }});
  return variants;
}

Variants timed(const Sizes& s) {
  Variants variants = {{concat(s.product_size, " x ", s.product_size, " x ", s.product_size), [=](Trial& t) {
                          declare_product(t, s.product_size, s.product_size, s.product_size, Transpose::kNo,
                                          Transpose::kYes);
                        }}};
  const int64_t C = s.hidden;
  std::vector<Linear> layers;
  if (s.gdn) {
    layers.push_back({"in_proj_qkvz", s.gdn->qkvz_columns(), C});
    layers.push_back({"in_proj_ba", s.gdn->ba_columns(), C, kWide, kNo, kYes});
    layers.push_back({"out_proj", C, s.gdn->value_heads * s.gdn->value_dim});  // like o_proj and the MTP's projection
  }
  if (s.attention) {
    layers.push_back({"q_proj", 2 * s.attention->query_heads * s.attention->head_dim, C});
    layers.push_back({"k_proj, v_proj", s.attention->kv_heads * s.attention->head_dim, C, kActivation, kNo, kYes});
  }
  layers.push_back({"router", s.experts, C, kWide, kNo, kYes});
  layers.push_back({"shared gate_proj, up_proj", s.shared_width, C, kActivation, kNo, kYes});
  layers.push_back({"shared down_proj", C, s.shared_width, kActivation, kYes, kNo});
  layers.push_back({"shared gate", 1, C, kWide, kNo, kYes});
  for (const Linear& layer : layers)
    variants.push_back({concat(layer.name, " ", layer.out, " x ", layer.in, layer.y == kWide ? ", out fp32" : ""),
                        [=, N = s.tokens()](Trial& t) { declare_linear(t, N, layer); }});
  return variants;
}

// Of the model's widths the first that is slow.
Implementation implementation(Context& ctx, const Sizes& s) {
  std::vector<int64_t> widths = {s.hidden, s.shared_width};
  if (s.gdn) widths.push_back(s.gdn->value_heads * s.gdn->value_dim);
  if (s.attention) widths.push_back(s.attention->query_heads * s.attention->head_dim);
  for (int64_t width : widths)
    if (Implementation slow = matmul_implementation(ctx, s.activation, width); !slow.why_slow.empty()) return slow;
  return matmul_implementation(ctx, s.activation, s.hidden);
}

}  // namespace

OperatorCase matmul_case() { return {"matmul", hard, checked, timed, implementation}; }

}  // namespace braid::cases
