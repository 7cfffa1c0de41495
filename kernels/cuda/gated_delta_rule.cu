#include "kernels/gated_delta_rule.h"

#include <cmath>

#include "kernels/cuda/gated_delta_rule_any.cuh"
#include "kernels/cuda/gated_delta_rule_gradient.cuh"
#include "kernels/cuda/gated_delta_rule_scan.cuh"
#include "kernels/cuda/gated_delta_rule_wgmma_gradient.cuh"

namespace braid::cuda {
namespace {

float scale_of(const DeltaRuleInputs& in) { return static_cast<float>(1 / std::sqrt(double(in.q.dim(2)))); }

// bf16, heads of 128: on tensor cores.
namespace fast {

using namespace delta_rule;

// Whether the kernels were made for these inputs and fit the GPU's shared memory.
bool applies(const Context& ctx, const DeltaRuleInputs& in) {
  if (in.q.dtype() != DType::kBF16 || in.q.dim(2) != kDim || in.v.dim(2) != kDim) return false;
  return ctx.gpu().most_shared_bytes >= static_cast<int>(sizeof(GradientShared));
}

Inputs inputs_of(const DeltaRuleInputs& in, const Segments& segments) {
  const Segments::Tables& tables = segments.on_gpu;
  return {pointer<bf16>(in.q),
          pointer<bf16>(in.k),
          pointer<bf16>(in.v),
          pointer<float>(in.beta),
          pointer<float>(in.log_decay),
          pointer<int32_t>(tables.chunk_begin),
          pointer<int32_t>(tables.first_chunk),
          pointer<int32_t>(tables.document_begin),
          pointer<int32_t>(tables.by_length),
          static_cast<int>(in.q.dim(1)),
          static_cast<int>(in.v.dim(1)),
          static_cast<int>(segments.num_chunks()),
          in.q.dim(0),
          scale_of(in)};
}

// Launches with the shared memory of the struct `Shared`.
template <class Shared, class... Parameters, class... Arguments>
void launch(Context& ctx, const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
            Arguments... arguments) {
  if (ctx.counts_only()) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
             "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(blocks), threads, sizeof(Shared), stream_of(ctx)>>>(arguments...);
  check_launch(name);
}

Prepared prepare(Context& ctx, Scratch& scratch, const Inputs& in, int64_t N) {
  const Prepared prepared = {static_cast<bf16*>(scratch.tensor({in.Hv, N, kChunk}, DType::kBF16).raw()),
                             static_cast<bf16*>(scratch.tensor({in.Hv, N, kChunk}, DType::kBF16).raw()),
                             reinterpret_cast<float2*>(scratch.array<float>(2 * N * in.Hv))};
  launch<PrepareShared>(ctx, "gated_delta_rule prepare", prepare_kernel, int64_t(in.num_chunks) * in.Hk,
                        kPrepareThreads, in, prepared);
  return prepared;
}

// (N, heads, kDim) of which a copy takes 64 numbers of 64 tokens and one head.
CUtensorMap map_of_heads(const Tensor& t) {
  const int64_t N = t.dim(0), heads = t.dim(1);
  return make_tensor_map<bf16, 3>({pointer<bf16>(t), {kDim, heads, N}, {kDim, heads * kDim}, {kHalf, 1, kChunk}});
}

// Calls body with the number of halves of a head that a block of a scan takes, and the number of blocks.
template <class Body>
void with_scan_blocks(const Context& ctx, int64_t heads, Body&& body) {
  const int64_t num_sms = ctx.gpu().num_sms;
  if (2 * heads <= num_sms) body.template operator()<1>(2 * heads);
  else body.template operator()<2>(std::min(heads, num_sms));
}

template <class Traits, class... Parameters, class... Arguments>
void launch_scan(Context& ctx, const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
                 const Arguments&... arguments) {
  constexpr int kBytes = Traits::Shared::kBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "cudaFuncSetAttribute");
  kernel<<<static_cast<unsigned>(blocks), threads, kBytes, stream_of(ctx)>>>(arguments...);
  check_launch(name);
}

void forward(Context& ctx, Tensor o, const DeltaRuleInputs& inputs, const Segments& segments) {
  const Inputs in = inputs_of(inputs, segments);
  const int num_documents = static_cast<int>(segments.num_documents());
  Scratch scratch(ctx);
  const Prepared prepared = prepare(ctx, scratch, in, inputs.q.dim(0));
  if (ctx.counts_only()) return;
  if (has_hopper_kernels(ctx)) {
    const ScanMaps maps = {map_of_heads(inputs.q), map_of_heads(inputs.k), map_of_heads(inputs.v), map_of_heads(o)};
    with_scan_blocks(ctx, num_documents * in.Hv, [&]<int kHalves>(int64_t blocks) {
      launch_scan<ScanTraits<true, kHalves>>(ctx, "gated_delta_rule scan", wgmma_scan_kernel<true, kHalves>, blocks,
                                             kScanBlock<kHalves>, maps, in, prepared, num_documents, pointer<bf16>(o),
                                             static_cast<bf16*>(nullptr), BorderStates{});
    });
    return;
  }
  launch<ScanShared>(ctx, "gated_delta_rule scan", scan_kernel<true>, segments.num_documents() * in.Hv, kScanThreads,
                     in, prepared, pointer<bf16>(o), BorderStates{});
}

void backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& inputs,
              const Segments& segments) {
  const Inputs in = inputs_of(inputs, segments);
  const int64_t N = inputs.q.dim(0), jobs = segments.num_documents() * in.Hv;
  Scratch scratch(ctx);
  auto take = [&](Shape shape) { return static_cast<bf16*>(scratch.tensor(shape, DType::kBF16).raw()); };
  const Prepared prepared = prepare(ctx, scratch, in, N);
  bf16 *delta = take({N, in.Hv, kDim}), *y = take({N, in.Hv, kDim});
  const BorderStates states{take({BorderStates::slots(N), in.Hv, kDim, kDim})};
  const BorderStates d_states{take({BorderStates::slots(N), in.Hv, kDim, kDim})};
  if (ctx.counts_only()) return;
  const Gradients d = {pointer<bf16>(d_in.q), pointer<bf16>(d_in.k), pointer<float>(d_in.beta),
                       pointer<float>(d_in.log_decay)};
  if (has_hopper_kernels(ctx)) {
    const int num_documents = static_cast<int>(segments.num_documents());
    const CUtensorMap q = map_of_heads(inputs.q), k = map_of_heads(inputs.k);
    const ScanMaps maps = {q, k, map_of_heads(inputs.v), {}}, reverse_maps = {q, k, map_of_heads(d_o), {}};
    with_scan_blocks(ctx, num_documents * in.Hv, [&]<int kHalves>(int64_t blocks) {
      launch_scan<ScanTraits<false, kHalves>>(ctx, "gated_delta_rule states", wgmma_scan_kernel<false, kHalves>, blocks,
                                              kScanBlock<kHalves>, maps, in, prepared, num_documents,
                                              static_cast<bf16*>(nullptr), delta, states);
      launch_scan<ReverseScanTraits<kHalves>>(ctx, "gated_delta_rule reverse scan", wgmma_reverse_scan_kernel<kHalves>,
                                              blocks, kScanBlock<kHalves>, reverse_maps, in, prepared, num_documents, y,
                                              d_states);
    });
    const GradientMaps gradient_maps = {q, k, map_of_heads(d_o), map_of_heads(d_in.q), map_of_heads(d_in.k)};
    check_cuda(cudaFuncSetAttribute(wgmma_gradient_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    GradientMemory::kBytes),
               "cudaFuncSetAttribute");
    const int64_t blocks = std::min<int64_t>(int64_t(in.num_chunks) * in.Hk, ctx.gpu().num_sms);
    wgmma_gradient_kernel<<<static_cast<unsigned>(blocks), kGradientBlock, GradientMemory::kBytes, stream_of(ctx)>>>(
        gradient_maps, d, pointer<bf16>(d_in.v), in, prepared.gates, Scanned{delta, y, states, d_states});
    check_launch("gated_delta_rule gradient");
    return;
  }
  launch<ScanShared>(ctx, "gated_delta_rule states", scan_kernel<false>, jobs, kScanThreads, in, prepared, delta,
                     states);
  launch<ScanShared>(ctx, "gated_delta_rule reverse scan", reverse_scan_kernel, jobs, kScanThreads, in, prepared,
                     pointer<bf16>(d_o), y, pointer<bf16>(d_in.v), d_states);
  launch<GradientShared>(ctx, "gated_delta_rule gradient", gradient_kernel, int64_t(in.num_chunks) * in.Hk,
                         kGradientThreads, d, in, pointer<bf16>(d_o), prepared.gates,
                         Scanned{delta, y, states, d_states});
}

}  // namespace fast

// Every other dtype and size.
namespace any {

using namespace delta_rule_any;

template <class X>
Inputs<X> inputs_of(const DeltaRuleInputs& in, const Segments& segments) {
  return {pointer<X>(in.q),
          pointer<X>(in.k),
          pointer<X>(in.v),
          pointer<float>(in.beta),
          pointer<float>(in.log_decay),
          pointer<int32_t>(segments.on_gpu.chunk_begin),
          pointer<int32_t>(segments.on_gpu.first_chunk),
          static_cast<int>(segments.num_documents()),
          static_cast<int>(in.q.dim(1)),
          static_cast<int>(in.v.dim(1)),
          static_cast<int>(in.q.dim(2)),
          static_cast<int>(in.v.dim(2)),
          scale_of(in)};
}

// Blocks that take turns at `jobs`, and the scratch they need.
struct Crew {
  int64_t blocks, floats;
  float* work;
  template <class X>
  Crew(Context& ctx, Scratch& scratch, const Inputs<X>& in, int64_t jobs)
      : blocks(std::min<int64_t>(jobs, 4 * ctx.gpu().num_sms)),
        floats(Work::floats(in.Dk, in.Dv, in.Hv / in.Hk)),
        work(scratch.array<float>(blocks * floats)) {}
};

template <class X>
void forward(Context& ctx, Tensor o, const DeltaRuleInputs& inputs, const Segments& segments) {
  const Inputs<X> in = inputs_of<X>(inputs, segments);
  Scratch scratch(ctx);
  const Crew crew(ctx, scratch, in, segments.num_documents() * in.Hv);
  if (ctx.counts_only()) return;
  forward_kernel<X, true>
      <<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(pointer<X>(o), BorderStates{}, in, crew.work, crew.floats);
  check_launch("gated_delta_rule forward");
}

template <class X>
void backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& inputs,
              const Segments& segments) {
  const Inputs<X> in = inputs_of<X>(inputs, segments);
  const int64_t slots = BorderStates::slots(inputs.q.dim(0));
  Scratch scratch(ctx);
  const Crew crew(ctx, scratch, in, segments.num_documents() * in.Hv);
  const BorderStates states{scratch.array<float>(slots * in.Hv * in.Dk * in.Dv)};
  if (ctx.counts_only()) return;
  forward_kernel<X, false><<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(nullptr, states, in, crew.work, crew.floats);
  check_launch("gated_delta_rule states");
  const Gradients<X> d = {pointer<X>(d_in.q), pointer<X>(d_in.k), pointer<X>(d_in.v), pointer<float>(d_in.beta),
                          pointer<float>(d_in.log_decay)};
  backward_kernel<X>
      <<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(d, pointer<X>(d_o), in, states, crew.work, crew.floats);
  check_launch("gated_delta_rule backward");
}

}  // namespace any
}  // namespace

void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments) {
  if (fast::applies(ctx, in)) return fast::forward(ctx, o, in, segments);
  dispatch_activation("q", in.q, [&]<class X> { any::forward<X>(ctx, o, in, segments); });
}

void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                               const Segments& segments) {
  if (fast::applies(ctx, in)) return fast::backward(ctx, d_in, d_o, in, segments);
  dispatch_activation("q", in.q, [&]<class X> { any::backward<X>(ctx, d_in, d_o, in, segments); });
}

Implementation gated_delta_rule_implementation(Context& ctx, const DeltaRuleInputs& in) {
  const int64_t Dk = in.q.dim(2), Dv = in.v.dim(2);
  if (fast::applies(ctx, in)) {
    if (has_hopper_kernels(ctx)) return {concat("chunked, Hopper's warpgroups (wgmma), heads of ", Dk), ""};
    const bool is_hopper = ctx.gpu().compute_capability == 90;
    return {concat("chunked, tensor cores (mma.sync), heads of ", Dk),
            is_hopper ? "this build has no kernels for sm_90a: set CMAKE_CUDA_ARCHITECTURES" : ""};
  }
  return {concat("chunked, general kernels, heads of ", Dk, " and ", Dv),
          concat("the tensor-core kernels take heads of ", delta_rule::kDim, " in bf16, not of ", Dk, " and ", Dv,
                 " in ", name_of(in.q.dtype()))};
}

}  // namespace braid::cuda
