#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <tuple>
#include <unordered_map>

#include "kernels/core/error.h"
#include "kernels/cuda/attention_backends.h"
#include "kernels/cuda/gpu.h"

// Softmax attention through cuDNN's graph API. Tensors keep Braid's layouts: cuDNN is given strides.
namespace braid::cuda {
namespace {

namespace fe = cudnn_frontend;
using TensorHandle = std::shared_ptr<fe::graph::Tensor_attributes>;

constexpr int64_t kBackwardTokenUnit = 128;  // cuDNN before 9.16 pads other lengths with copies from the host
// Backward takes as many rows at a time as have their matrices in this much workspace. One row and one key head are
// the least; a row that needs more than the second bound is not served.
constexpr int64_t kWorkspaceBytes = int64_t{1} << 30, kMostWorkspaceBytes = int64_t{5} << 30;

void check_cudnn(cudnnStatus_t result, const char* call) {
  check<EnvironmentError>(result == CUDNN_STATUS_SUCCESS, call, ": ", cudnnGetErrorString(result));
}
void check_cudnn(fe::error_t result, const char* call) {
  check<EnvironmentError>(result.is_good(), "cuDNN attention, ", call, ": ", result.get_message());
}

// Names of the tensors of a graph.
enum Uid : int64_t { kQ, kK, kV, kO, kLse, kDO, kDQ, kDK, kDV, kLengths, kKeyLengths, kQOffset, kKvOffset, kLseOffset };
using Pointers = std::unordered_map<int64_t, void*>;

enum class Pass : uint8_t { kForward, kForwardPacked, kForwardGoingOn, kBackward };

// What a plan is made for. B: rows (for packed documents, their bound); T and S: most queries and keys of each; Hq and
// Hkv: heads that it works on, of all_q_heads and all_kv_heads in memory.
struct PlanKey {
  Pass pass;
  int64_t B, T, S, Hq, Hkv, Dh, all_q_heads, all_kv_heads;
  int device;
  friend auto operator<=>(const PlanKey&, const PlanKey&) = default;
};

struct Plan {
  std::shared_ptr<fe::graph::Graph> graph;
  int64_t workspace_bytes = 0;
  std::string why_not;  // empty if the plan can run
};

// (B, heads, tokens, width) in rows of `all_heads` heads.
fe::graph::Tensor_attributes described(Uid uid, int64_t B, int64_t tokens, int64_t heads, int64_t all_heads,
                                       int64_t width) {
  return fe::graph::Tensor_attributes()
      .set_uid(uid)
      .set_dim({B, heads, tokens, width})
      .set_stride({tokens * all_heads * width, width, all_heads * width, 1});
}
fe::graph::Tensor_attributes of_queries(Uid uid, const PlanKey& k, int64_t width) {
  return described(uid, k.B, k.T, k.Hq, k.all_q_heads, width);
}
fe::graph::Tensor_attributes of_keys(Uid uid, const PlanKey& k) {
  return described(uid, k.B, k.S, k.Hkv, k.all_kv_heads, k.Dh);
}

TensorHandle index_table(fe::graph::Graph& graph, Uid uid, int64_t count) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_uid(uid)
                          .set_dim({count, 1, 1, 1})
                          .set_stride({1, 1, 1, 1})
                          .set_data_type(fe::DataType_t::INT32));
}

void describe_output(const TensorHandle& tensor, const fe::graph::Tensor_attributes& like) {
  tensor->set_output(true).set_uid(like.get_uid()).set_dim(like.get_dim()).set_stride(like.get_stride());
}

void add_forward(fe::graph::Graph& graph, const PlanKey& k, float scale) {
  auto q = of_queries(kQ, k, k.Dh), o = of_queries(kO, k, k.Dh), lse = of_queries(kLse, k, 1);
  auto key = of_keys(kK, k), v = of_keys(kV, k);
  auto options =
      fe::graph::SDPA_attributes().set_name("attention_forward").set_generate_stats(true).set_attn_scale(scale);
  // The last query sees the last key, the one before it all but that, and so on.
  if (k.pass == Pass::kForwardGoingOn) options.set_causal_mask_bottom_right(true);
  else options.set_causal_mask(true);
  const bool packed = k.pass != Pass::kForward;
  TensorHandle q_offset, kv_offset, lse_offset;
  if (packed) {
    const TensorHandle lengths = index_table(graph, kLengths, k.B);
    const TensorHandle key_lengths = k.pass == Pass::kForwardGoingOn ? index_table(graph, kKeyLengths, k.B) : lengths;
    q_offset = index_table(graph, kQOffset, k.B + 1);
    kv_offset = index_table(graph, kKvOffset, k.B + 1);
    lse_offset = index_table(graph, kLseOffset, k.B + 1);
    q.set_ragged_offset(q_offset);
    key.set_ragged_offset(kv_offset);
    v.set_ragged_offset(kv_offset);
    options.set_padding_mask(true).set_seq_len_q(lengths).set_seq_len_kv(key_lengths);
  }
  const auto [out, stats] = graph.sdpa(graph.tensor(q), graph.tensor(key), graph.tensor(v), options);
  describe_output(out, o);
  describe_output(stats, lse);
  stats->set_data_type(fe::DataType_t::FLOAT);
  if (packed) {
    out->set_ragged_offset(q_offset);
    stats->set_ragged_offset(lse_offset);
  }
}

void add_backward(fe::graph::Graph& graph, const PlanKey& k, float scale) {
  const auto queries = [&](Uid uid) { return of_queries(uid, k, k.Dh); };
  const auto keys = [&](Uid uid) { return of_keys(uid, k); };
  const TensorHandle lse = graph.tensor(fe::graph::Tensor_attributes()
                                            .set_uid(kLse)
                                            .set_dim({k.B, k.Hq, k.T, 1})
                                            .set_stride({k.Hq * k.T, k.T, 1, 1})
                                            .set_data_type(fe::DataType_t::FLOAT));
  const auto [d_q, d_k, d_v] =
      graph.sdpa_backward(graph.tensor(queries(kQ)), graph.tensor(keys(kK)), graph.tensor(keys(kV)),
                          graph.tensor(queries(kO)), graph.tensor(queries(kDO)), lse,
                          fe::graph::SDPA_backward_attributes()
                              .set_name("attention_backward")
                              .set_causal_mask(true)
                              .set_attn_scale(scale)
                              .set_deterministic_algorithm(true));
  describe_output(d_q, queries(kDQ));
  describe_output(d_k, keys(kDK));
  describe_output(d_v, keys(kDV));
}

// What a message of many lines begins with, and the first reason that it gives.
std::string first_reason(const std::string& message) {
  std::string text = message.substr(0, message.find('\n'));
  const size_t reason = message.find("Reason: ");
  if (reason != std::string::npos) text += "; " + message.substr(reason, message.find('\n', reason) - reason);
  return text.empty() ? "no plan" : text;
}

// Of the calling thread, and never freed: the driver may be gone before it.
cudnnHandle_t handle_of(const Gpu& gpu) {
  thread_local auto* handles = new std::map<int, cudnnHandle_t>;
  cudnnHandle_t& handle = (*handles)[gpu.device_index];
  if (!handle) check_cudnn(cudnnCreate(&handle), "cudnnCreate");
  check_cudnn(cudnnSetStream(handle, gpu.stream), "cudnnSetStream");
  return handle;
}

// Made at its first use, which therefore must not be while a graph is captured. Which engine runs is the first choice
// of cuDNN's heuristics and not a matter of timing, so that two runs choose alike.
const Plan& plan_for(const Gpu& gpu, const PlanKey& key) {
  thread_local auto* plans = new std::map<PlanKey, Plan>;
  const auto found = plans->find(key);
  if (found != plans->end()) return found->second;
  Plan plan;
  if (!gpu.is_there()) {  // of the engine that cuDNN chooses on Hopper, backward keeps a matrix of scores per head
    if (key.pass == Pass::kBackward) plan.workspace_bytes = 2 * key.B * key.Hq * key.T * key.T;
    return plans->emplace(key, std::move(plan)).first->second;
  }
  plan.graph = std::make_shared<fe::graph::Graph>();
  plan.graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const float scale = 1 / std::sqrt(static_cast<float>(key.Dh));
  if (key.pass == Pass::kBackward) add_backward(*plan.graph, key, scale);
  else add_forward(*plan.graph, key, scale);
  fe::error_t result = plan.graph->build(handle_of(gpu), {fe::HeurMode_t::A});
  if (result.is_good()) result = plan.graph->get_workspace_size(plan.workspace_bytes);
  if (!result.is_good()) {
    plan.why_not = first_reason(result.get_message());
    plan.graph.reset();
  } else if (plan.workspace_bytes > kMostWorkspaceBytes) {
    plan.why_not = concat("wants ", plan.workspace_bytes, " bytes of workspace");
  }
  return plans->emplace(key, std::move(plan)).first->second;
}

void run(Context& ctx, const Plan& plan, Pointers& pointers) {
  check<EnvironmentError>(plan.why_not.empty(), "cuDNN attention: ", plan.why_not);
  Scratch scratch(ctx);
  Tensor workspace = scratch.tensor({std::max<int64_t>(1, plan.workspace_bytes)}, DType::kU8);
  if (ctx.counts_only()) return;
  check_cudnn(plan.graph->execute(handle_of(ctx.gpu()), pointers, workspace.raw()), "execute");
}

PlanKey forward_key(const Gpu& gpu, const AttentionTensors& in, const Segments& segments) {
  const int64_t Hq = in.q.dim(1), Hkv = in.k.dim(1), Dh = in.q.dim(2), T = segments.row_tokens;
  const bool whole = is_whole_rows(segments), goes_on = !segments.tokens_before.empty();
  int64_t most_keys = T;  // in powers of two of rows, so that there are few plans
  for (int64_t before : segments.tokens_before)
    while (most_keys < T + before) most_keys *= 2;
  return {goes_on ? Pass::kForwardGoingOn
          : whole ? Pass::kForward
                  : Pass::kForwardPacked,
          whole ? segments.num_rows : document_bound(segments.num_documents()),
          T,
          most_keys,
          Hq,
          Hkv,
          Dh,
          Hq,
          Hkv,
          gpu.device_index};
}

// Rows and heads that backward takes at a time.
PlanKey backward_key(const Gpu& gpu, const AttentionTensors& in, const Segments& segments) {
  const int64_t Hq = in.q.dim(1), Hkv = in.k.dim(1), Dh = in.q.dim(2), T = segments.row_tokens;
  const int64_t matrix_bytes = 2 * T * T;
  int64_t rows = segments.num_rows, kv_heads = Hkv;  // both divide what there is
  while (rows > 1 && (segments.num_rows % rows != 0 || rows * Hq * matrix_bytes > kWorkspaceBytes)) --rows;
  while (rows == 1 && kv_heads > 1 && (Hkv % kv_heads != 0 || kv_heads * (Hq / Hkv) * matrix_bytes > kWorkspaceBytes))
    --kv_heads;
  return {Pass::kBackward, rows, T, T, kv_heads * (Hq / Hkv), kv_heads, Dh, Hq, Hkv, gpu.device_index};
}

std::string why_not(Context& ctx, const AttentionTensors& in) {
  const int64_t Dh = in.q.dim(2);
  if (in.q.dtype() != DType::kBF16) return "not bf16";
  if (ctx.gpu().compute_capability < 90) return "GPU older than Hopper";
  if (Dh % 16 != 0 || Dh < 64 || Dh > 256) return concat("head size ", Dh);
  if (std::max(in.q.numel(), in.k.numel()) > INT32_MAX) return "offsets exceed 32 bits";
  return "";
}

void* at(Tensor& t, int64_t element) { return static_cast<std::byte*>(t.raw()) + element * size_of(t.dtype()); }
void* at(const Tensor& t, int64_t element) { return at(const_cast<Tensor&>(t), element); }

}  // namespace

std::string why_not_cudnn_forward(Context& ctx, const AttentionTensors& in, const Segments& segments) {
  std::string reason = why_not(ctx, in);
  if (!reason.empty()) return reason;
  return plan_for(ctx.gpu(), forward_key(ctx.gpu(), in, segments)).why_not;
}

std::string why_not_cudnn_backward(Context& ctx, const AttentionTensors& in, const Segments& segments) {
  std::string reason = why_not(ctx, in);
  if (!reason.empty()) return reason;
  if (!is_whole_rows(segments)) return "packed documents";
  if (!segments.tokens_before.empty()) return "keys before the rows";
  if (segments.row_tokens % kBackwardTokenUnit != 0) return concat("rows of ", segments.row_tokens, " tokens");
  const PlanKey key = backward_key(ctx.gpu(), in, segments);
  const int64_t bytes = 2 * key.B * key.Hq * key.T * key.T;
  if (bytes > kMostWorkspaceBytes) return concat("wants ", bytes, " bytes of workspace");
  return plan_for(ctx.gpu(), key).why_not;
}

void cudnn_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in,
                             const Segments& segments) {
  const PlanKey key = forward_key(ctx.gpu(), in, segments);
  Pointers pointers = {
      {kQ, at(in.q, 0)}, {kK, at(in.k, 0)}, {kV, at(in.v, 0)}, {kO, out.o.raw()}, {kLse, out.lse.raw()}};
  Scratch scratch(ctx);
  if (key.pass != Pass::kForward) {
    DocumentTables tables = make_document_tables(ctx, scratch, in, segments, key.B);
    pointers.insert({{kLengths, tables.lengths.raw()},
                     {kQOffset, tables.q_offset.raw()},
                     {kKvOffset, tables.kv_offset.raw()},
                     {kLseOffset, tables.lse_offset.raw()}});
    if (key.pass == Pass::kForwardGoingOn) pointers.insert({kKeyLengths, tables.key_lengths.raw()});
  }
  run(ctx, plan_for(ctx.gpu(), key), pointers);
}

void cudnn_attention_backward(Context& ctx, AttentionGradients& d_in, const Tensor& d_o, const Tensor& lse_by_head,
                              const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments) {
  const PlanKey key = backward_key(ctx.gpu(), in, segments);
  const Plan& plan = plan_for(ctx.gpu(), key);
  const int64_t T = key.T, Dh = key.Dh;
  for (int64_t row = 0; row < segments.num_rows; row += key.B) {
    for (int64_t kv_head = 0; kv_head < key.all_kv_heads; kv_head += key.Hkv) {
      const int64_t head = kv_head * (key.Hq / key.Hkv);
      const int64_t q = (row * T * key.all_q_heads + head) * Dh, kv = (row * T * key.all_kv_heads + kv_head) * Dh;
      Pointers pointers = {
          {kQ, at(in.q, q)},     {kK, at(in.k, kv)},    {kV, at(in.v, kv)},
          {kO, at(out.o, q)},    {kDO, at(d_o, q)},     {kDQ, at(d_in.q, q)},
          {kDK, at(d_in.k, kv)}, {kDV, at(d_in.v, kv)}, {kLse, at(lse_by_head, (row * key.all_q_heads + head) * T)}};
      run(ctx, plan, pointers);
    }
  }
}

}  // namespace braid::cuda
