#include "kernels/attention.h"

#include "kernels/attention_inputs.h"
#include "trainer/bench/workbench.h"

namespace braid {
namespace {

// Activation elements of all query heads, and of all key heads.
double query_elements(const Workbench& b) {
  return double(b.num_tokens() * b.model().num_attention_heads * b.model().head_dim);
}
double key_elements(const Workbench& b) {
  return double(b.num_tokens() * b.model().num_key_value_heads * b.model().head_dim);
}

// "cuDNN" or "tensor-core kernel", without the reason for it.
std::string short_name(const std::string& implementation) {
  return implementation.substr(0, implementation.find(" ("));
}

void bench_rows(Workbench& b, const std::string& shape, const Segments& documents) {
  const AttentionDims d = b.model().attention();
  const int64_t N = b.num_tokens();
  const DType activation = b.activation();
  const Shape queries = {N, d.query_heads, d.head_dim}, keys = {N, d.kv_heads, d.head_dim};
  const Shape gates = {N, d.query_heads, 2, d.head_dim};
  const Segments segments = b.uploaded(documents);
  const AttentionTensors in = {b.normal(queries, activation), b.normal(keys, activation), b.normal(keys, activation),
                               b.normal(gates, activation)};
  const Tensor d_y = b.normal(queries, activation);
  const AttentionOutputs out = {b.empty(queries, activation), b.empty(queries, activation),
                                b.empty({N, d.query_heads}, wide_dtype(activation))};
  const AttentionGradients d_in = {b.empty(queries, activation), b.empty(keys, activation), b.empty(keys, activation),
                                   b.empty(gates, activation)};
  attention_forward(b.ctx(), out, in, segments);  // backward reads `out`, also where forward was not chosen

  double pairs = 0;  // of a query and a key it sees
  for (int64_t doc = 0; doc < segments.num_documents(); ++doc)
    pairs += 0.5 * double(segments.length(doc)) * double(segments.length(doc) + 1);
  const double product = 2 * pairs * double(d.query_heads * d.head_dim);
  const double q = query_elements(b) * b.activation_bytes(), k = key_elements(b) * b.activation_bytes();
  const AttentionImplementation implementation = attention_implementation(b.ctx(), in, segments);
  b.measure("attention_forward", concat(shape, " (", short_name(implementation.forward), ")"),
            {.bytes = 4 * q + 2 * k, .flop = 2 * product}, [&](int) { attention_forward(b.ctx(), out, in, segments); });
  b.measure("attention_backward", concat(shape, " (", short_name(implementation.backward), ")"),
            {.bytes = 6 * q + 4 * k, .flop = 5 * product},
            [&](int) { attention_backward(b.ctx(), d_in, d_y, in, out, segments); });
}

}  // namespace

void bench_attention_inputs(Workbench& b) {
  const AttentionDims d = b.model().attention();
  const int64_t N = b.num_tokens();
  const DType activation = b.activation(), wide = wide_dtype(activation);
  const Shape queries = {N, d.query_heads, d.head_dim}, keys = {N, d.kv_heads, d.head_dim};
  const Shape gates = {N, d.query_heads, 2, d.head_dim};
  const Segments segments = b.uploaded(b.whole_rows());
  const Workbench::Tensors q_gate = b.normals(gates, activation), k = b.normals(keys, activation);
  const Workbench::Tensors d_q = b.normals(queries, activation), d_k = b.normals(keys, activation);
  const AttentionInputWeights weights = {b.normal({d.head_dim}, wide, 0.1), b.normal({d.head_dim}, wide, 0.1)};
  const AttentionInputWeights d_weights = {b.zeros({d.head_dim}, wide), b.zeros({d.head_dim}, wide)};
  const AttentionInputs out = {b.empty(queries, activation), b.empty(keys, activation),
                               b.uniform({N, d.query_heads}, wide, 0.5, 2), b.uniform({N, d.kv_heads}, wide, 0.5, 2)};
  const AttentionProjections d_x = {b.empty(gates, activation), b.empty(keys, activation)};
  const double heads = (query_elements(b) + key_elements(b)) * b.activation_bytes();
  b.measure("attention_inputs_forward", b.whole_rows_name(), {.bytes = 2 * heads}, [&](int turn) {
    attention_inputs_forward(b.ctx(), out, {q_gate[turn], k[turn]}, weights, segments, d);
  });
  b.measure("attention_inputs_backward", b.whole_rows_name(), {.bytes = 3 * heads}, [&](int turn) {
    attention_inputs_backward(b.ctx(), d_x, d_weights, d_q[turn], d_k[turn], out, {q_gate[turn], k[turn]}, weights,
                              segments, d);
  });
}

void bench_attention(Workbench& b) {
  const int64_t N = b.num_tokens(), T = b.row_tokens();
  bench_rows(b, b.whole_rows_name(), b.whole_rows());
  bench_rows(b, b.whole_rows_name() + ", packed", Workbench::mixed_documents(N / T, T));
  if (T < N) bench_rows(b, concat("1 x ", N), Segments::whole_rows(1, N));
}

}  // namespace braid
