#include "kernels/matmul.h"

#include "trainer/bench/workbench.h"

namespace braid {
namespace {

// A linear layer of the model and what its calls look like there.
struct Linear {
  const char* name;
  int64_t out, in;  // O, I
  DType y;
  Accumulate forward, backward_input;
};

std::vector<Linear> linear_layers(const ModelConfig& m, DType activation) {
  const DType wide = wide_dtype(activation);
  const int64_t C = m.hidden_size, value_width = m.linear_num_value_heads * m.linear_value_head_dim;
  const int64_t q_width = m.num_attention_heads * m.head_dim, kv_width = m.num_key_value_heads * m.head_dim;
  const auto [no, yes] = std::pair(Accumulate::kNo, Accumulate::kYes);
  return {{"in_proj_qkvz", m.gdn().qkvz_columns(), C, activation, no, no},
          {"in_proj_ba", m.gdn().ba_columns(), C, wide, no, yes},
          {"out_proj", C, value_width, activation, no, no},  // also o_proj and the projection of the MTP block
          {"q_proj", 2 * q_width, C, activation, no, no},
          {"k_proj, v_proj", kv_width, C, activation, no, yes},
          {"router", m.num_experts, C, wide, no, yes},
          {"shared gate_proj, up_proj", m.shared_expert_intermediate_size, C, activation, no, yes},
          {"shared down_proj", C, m.shared_expert_intermediate_size, activation, yes, no},
          {"shared gate", 1, C, wide, no, yes}};
}

void bench_linear(Workbench& b, const Linear& layer) {
  const int64_t N = b.num_tokens(), O = layer.out, I = layer.in;
  const DType activation = b.activation();
  const Workbench::Tensors x = b.normals({N, I}, activation), d_y = b.normals({N, O}, activation);
  const Tensor weight = b.normal({O, I}, activation, 0.02);
  Tensor y = b.normal({N, O}, layer.y), d_x = b.normal({N, I}, activation);
  Tensor d_weight = b.zeros({O, I}, wide_dtype(activation));
  const double flop = 2.0 * double(N) * double(O) * double(I);
  auto passes = [](Accumulate accumulate) { return accumulate == Accumulate::kYes ? 2.0 : 1.0; };
  auto bytes = [](const Tensor& t) { return double(t.bytes()); };
  const std::string shape = concat(layer.name, " ", O, " x ", I, layer.y != activation ? ", out fp32" : "");
  b.measure("linear_forward", shape,
            {.bytes = bytes(x[0]) + bytes(weight) + passes(layer.forward) * bytes(y), .flop = flop},
            [&](int turn) { linear_forward(b.ctx(), y, x[turn], weight, layer.forward); });
  b.measure("linear_backward_input", shape,
            {.bytes = bytes(d_y[0]) + bytes(weight) + passes(layer.backward_input) * bytes(d_x), .flop = flop},
            [&](int turn) { linear_backward_input(b.ctx(), d_x, d_y[turn], weight, layer.backward_input); });
  b.measure("linear_backward_weight", shape, {.bytes = bytes(d_y[0]) + bytes(x[0]) + 2 * bytes(d_weight), .flop = flop},
            [&](int turn) { linear_backward_weight(b.ctx(), d_weight, d_y[turn], x[turn]); });
}

}  // namespace

void bench_matmul(Workbench& b) {
  const int64_t M = b.options().product_size;
  const Tensor left = b.normal({M, M}, b.activation()), right = b.normal({M, M}, b.activation());
  Tensor c = b.empty({M, M}, b.activation());
  b.measure("matmul", concat(M, " x ", M, " x ", M),
            {.bytes = 3.0 * double(c.bytes()), .flop = 2.0 * double(M) * double(M) * double(M)},
            [&](int) { matmul(b.ctx(), c, left, Transpose::kNo, right, Transpose::kYes); });
  for (const Linear& layer : linear_layers(b.model(), b.activation())) bench_linear(b, layer);
}

}  // namespace braid
