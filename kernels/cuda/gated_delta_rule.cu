#include "kernels/gated_delta_rule.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/core/copy.h"
#include "kernels/cuda/gated_delta_rule_any.cuh"
#include "kernels/cuda/gated_delta_rule_gradient.cuh"
#include "kernels/cuda/gated_delta_rule_scan.cuh"
#include "kernels/cuda/gated_delta_rule_wgmma_gradient.cuh"

namespace braid::cuda {
namespace {

RowStates row_states(const Tensor& states, const Segments& segments) {
  Tensor t = states;
  return {pointer<float>(t), static_cast<int>(segments.row_tokens)};
}

float scale_of(const DeltaRuleInputs& in) { return static_cast<float>(1 / std::sqrt(double(in.q.dim(2)))); }

// bf16, heads of 128: on tensor cores.
namespace fast {

using namespace delta_rule;

// Whether the kernels were made for these inputs and fit the GPU's shared memory. States at the ends of rows are known
// to those of Hopper.
bool applies(const Context& ctx, const DeltaRuleInputs& in, bool with_states) {
  if (in.q.dtype() != DType::kBF16 || in.q.dim(2) != kDim || in.v.dim(2) != kDim) return false;
  if (with_states && !has_hopper_kernels(ctx)) return false;
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
          static_cast<int>(in.beta.dim(1)),
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

// Without o only the final states are wanted; without v (on Hopper, and without o) it is zero.
void forward(Context& ctx, Tensor o, const DeltaRuleInputs& inputs, const Segments& segments,
             const DeltaRuleStates& states) {
  const Inputs in = inputs_of(inputs, segments);
  const int num_documents = static_cast<int>(segments.num_documents());
  Scratch scratch(ctx);
  const Prepared prepared = prepare(ctx, scratch, in, inputs.q.dim(0));
  if (ctx.counts_only()) return;
  if (has_hopper_kernels(ctx)) {
    const bool with_outputs = o.defined();
    const ScanMaps maps = {map_of_heads(inputs.q), map_of_heads(inputs.k),
                           map_of_heads(inputs.v.defined() ? inputs.v : inputs.k),
                           with_outputs ? map_of_heads(o) : CUtensorMap{}};
    const ScanEnds ends = {row_states(states.initial, segments), row_states(states.final, segments), nullptr,
                           !inputs.v.defined(), !with_outputs};
    with_scan_blocks(ctx, num_documents * in.Hv, [&]<int kHalves>(int64_t blocks) {
      const auto scan = [&]<bool kWithOutputs>(const auto& ends) {
        launch_scan<ScanTraits<kWithOutputs, kHalves>>(
            ctx, "gated_delta_rule scan", wgmma_scan_kernel<kWithOutputs, kHalves, std::decay_t<decltype(ends)>>,
            blocks, kScanBlock<kHalves>, maps, in, prepared, ends, num_documents, pointer<bf16>(o),
            static_cast<bf16*>(nullptr), BorderStates{});
      };
      if (!with_outputs) scan.template operator()<false>(ends);
      else if (ends.are_used()) scan.template operator()<true>(ends);
      else scan.template operator()<true>(NoEnds());
    });
    return;
  }
  launch<ScanShared>(ctx, "gated_delta_rule scan", scan_kernel<true>, segments.num_documents() * in.Hv, kScanThreads,
                     in, prepared, pointer<bf16>(o), BorderStates{});
}

// The gradient of the initial states alone, which sees neither states nor values.
void backward_states(Context& ctx, const Tensor& d_o, const DeltaRuleInputs& inputs, const Segments& segments,
                     const DeltaRuleStateGradients& at_ends) {
  const Inputs in = inputs_of(inputs, segments);
  Scratch scratch(ctx);
  const Prepared prepared = prepare(ctx, scratch, in, inputs.q.dim(0));
  if (ctx.counts_only()) return;
  const int num_documents = static_cast<int>(segments.num_documents());
  const ScanMaps maps = {map_of_heads(inputs.q), map_of_heads(inputs.k), map_of_heads(d_o), {}};
  const ScanEnds ends = {row_states(at_ends.d_final, segments), row_states(at_ends.d_initial, segments), nullptr, false,
                         true};
  with_scan_blocks(ctx, num_documents * in.Hv, [&]<int kHalves>(int64_t blocks) {
    launch_scan<ReverseScanTraits<kHalves>>(
        ctx, "gated_delta_rule reverse scan", wgmma_reverse_scan_kernel<kHalves, ScanEnds>, blocks, kScanBlock<kHalves>,
        maps, in, prepared, ends, num_documents, static_cast<bf16*>(nullptr), BorderStates{});
  });
}

void backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& inputs,
              const Segments& segments, const DeltaRuleStateGradients& at_ends) {
  const Inputs in = inputs_of(inputs, segments);
  const int64_t N = inputs.q.dim(0), jobs = segments.num_documents() * in.Hv;
  Scratch scratch(ctx);
  auto take = [&](Shape shape) { return static_cast<bf16*>(scratch.tensor(shape, DType::kBF16).raw()); };
  const Prepared prepared = prepare(ctx, scratch, in, N);
  auto take_entered = [&](const Tensor& of) {
    return of.defined() ? take({segments.num_rows, in.Hv, kDim, kDim}) : nullptr;
  };
  const EnteredStates entered = {take_entered(at_ends.initial), take_entered(at_ends.d_final),
                                 static_cast<int>(segments.row_tokens)};
  bf16 *delta = take({N, in.Hv, kDim}), *y = take({N, in.Hv, kDim});
  const BorderStates states{take({BorderStates::slots(N), in.Hv, kDim, kDim})};
  const BorderStates d_states{take({BorderStates::slots(N), in.Hv, kDim, kDim})};
  if (ctx.counts_only()) return;
  const Gradients d = {pointer<bf16>(d_in.q), pointer<bf16>(d_in.k), pointer<float>(d_in.beta),
                       pointer<float>(d_in.log_decay)};
  if (has_hopper_kernels(ctx)) {
    const int num_documents = static_cast<int>(segments.num_documents());
    const CUtensorMap q = map_of_heads(inputs.q), k = map_of_heads(inputs.k);
    const ScanEnds ends = {row_states(at_ends.initial, segments), row_states({}, segments),
                           const_cast<bf16*>(entered.states), false, false};
    const ScanEnds reverse_ends = {row_states(at_ends.d_final, segments), row_states(at_ends.d_initial, segments),
                                   const_cast<bf16*>(entered.d_states), false, false};
    const ScanMaps maps = {q, k, map_of_heads(inputs.v), {}}, reverse_maps = {q, k, map_of_heads(d_o), {}};
    const GradientMaps gradient_maps = {q, k, map_of_heads(d_o), map_of_heads(d_in.q), map_of_heads(d_in.k)};
    const auto run = [&](const auto& ends, const auto& reverse_ends, const auto& entered) {
      using Ends = std::decay_t<decltype(ends)>;
      with_scan_blocks(ctx, num_documents * in.Hv, [&]<int kHalves>(int64_t blocks) {
        launch_scan<ScanTraits<false, kHalves>>(ctx, "gated_delta_rule states", wgmma_scan_kernel<false, kHalves, Ends>,
                                                blocks, kScanBlock<kHalves>, maps, in, prepared, ends, num_documents,
                                                static_cast<bf16*>(nullptr), delta, states);
        launch_scan<ReverseScanTraits<kHalves>>(ctx, "gated_delta_rule reverse scan",
                                                wgmma_reverse_scan_kernel<kHalves, Ends>, blocks, kScanBlock<kHalves>,
                                                reverse_maps, in, prepared, reverse_ends, num_documents, y, d_states);
      });
      const auto gradient_kernel = wgmma_gradient_kernel<std::decay_t<decltype(entered)>>;
      check_cuda(
          cudaFuncSetAttribute(gradient_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GradientMemory::kBytes),
          "cudaFuncSetAttribute");
      const int64_t blocks = std::min<int64_t>(int64_t(in.num_chunks) * in.Hk, ctx.gpu().num_sms);
      gradient_kernel<<<static_cast<unsigned>(blocks), kGradientBlock, GradientMemory::kBytes, stream_of(ctx)>>>(
          gradient_maps, d, pointer<bf16>(d_in.v), in, prepared.gates, Scanned{delta, y, states, d_states}, entered);
      check_launch("gated_delta_rule gradient");
    };
    if (ends.are_used() || reverse_ends.are_used()) run(ends, reverse_ends, entered);
    else run(NoEnds(), NoEnds(), NoneEntered());
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
void forward(Context& ctx, Tensor o, const DeltaRuleInputs& inputs, const Segments& segments,
             const DeltaRuleStates& states) {
  const Inputs<X> in = inputs_of<X>(inputs, segments);
  Scratch scratch(ctx);
  const Crew crew(ctx, scratch, in, segments.num_documents() * in.Hv);
  if (ctx.counts_only()) return;
  const auto kernel = o.defined() ? forward_kernel<X, true> : forward_kernel<X, false>;
  kernel<<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(pointer<X>(o), BorderStates{},
                                                       row_states(states.initial, segments),
                                                       row_states(states.final, segments), in, crew.work, crew.floats);
  check_launch("gated_delta_rule forward");
}

template <class X>
void backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& inputs,
              const Segments& segments, const DeltaRuleStateGradients& at_ends) {
  const Inputs<X> in = inputs_of<X>(inputs, segments);
  const int64_t slots = BorderStates::slots(inputs.q.dim(0));
  Scratch scratch(ctx);
  if (!d_in.q.defined()) {  // found all the same, and left
    auto like = [&](const Tensor& t) { return scratch.tensor(t.shape(), t.dtype()); };
    d_in = {like(inputs.q), like(inputs.k), like(inputs.v), like(inputs.beta), like(inputs.log_decay)};
  }
  const Crew crew(ctx, scratch, in, segments.num_documents() * in.Hv);
  const BorderStates states{scratch.array<float>(slots * in.Hv * in.Dk * in.Dv)};
  if (ctx.counts_only()) return;
  const RowStates initial = row_states(at_ends.initial, segments);
  forward_kernel<X, false>
      <<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(nullptr, states, initial, RowStates{}, in, crew.work, crew.floats);
  check_launch("gated_delta_rule states");
  const Gradients<X> d = {pointer<X>(d_in.q), pointer<X>(d_in.k), pointer<X>(d_in.v), pointer<float>(d_in.beta),
                          pointer<float>(d_in.log_decay)};
  backward_kernel<X><<<crew.blocks, kThreads, 0, stream_of(ctx)>>>(
      d, pointer<X>(d_o), in, states, initial, row_states(at_ends.d_initial, segments),
      row_states(at_ends.d_final, segments), crew.work, crew.floats);
  check_launch("gated_delta_rule backward");
}

}  // namespace any

// The identity.   state (Hv, D, D)
__global__ void identity_kernel(float* state, int64_t numel, int D) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < numel) state[i] = i / D % D == i % D ? 1.0f : 0.0f;
}

constexpr int kCarryColumns = 16, kCarryThreads = 256, kCarryRows = kCarryThreads / kCarryColumns;
constexpr int kCarryDepth = 32;  // of a tile of a transition
struct Parts {
  static constexpr int kMost = 64;
  int count, part[kMost];
};

// state = A state + B (A^T state + B), for one part after another. A block owns 16 columns of the state of a head,
// which lie in shared memory; their sums have one order. Per part and head 2 Dk Dk Dv FLOP, and A once for every 16
// columns.
template <bool kTransposed>
__global__ void __launch_bounds__(kCarryThreads)
    carry_kernel(float* state, const float* transitions, const float* contributions, Parts parts, int Hv, int Dk,
                 int Dv) {
  extern __shared__ float shared[];
  float *now = shared, *next = shared + Dk * kCarryColumns;  // (Dk, kCarryColumns)
  __shared__ float tile[kCarryRows * 8][kCarryDepth + 1];    // of A, by rows of the product
  const int head = blockIdx.x, column = threadIdx.x % kCarryColumns, row = threadIdx.x / kCarryColumns;
  const int at = blockIdx.y * kCarryColumns + column;
  for (int a = row; a < Dk; a += kCarryRows)
    now[a * kCarryColumns + column] = at < Dv ? state[(int64_t(head) * Dk + a) * Dv + at] : 0.0f;
  for (int i = 0; i < parts.count; ++i) {
    const int64_t place = int64_t(parts.part[i]) * Hv + head;
    const float *A = transitions + place * Dk * Dk, *B = contributions + place * Dk * Dv;
    for (int first = 0; first < Dk; first += kCarryRows * 8) {
      float sums[8] = {};
      for (int depth = 0; depth < Dk; depth += kCarryDepth) {
        __syncthreads();
        for (int j = threadIdx.x; j < kCarryRows * 8 * kCarryDepth; j += kCarryThreads) {
          const int r = kTransposed ? j % (kCarryRows * 8) : j / kCarryDepth;
          const int d = kTransposed ? j / (kCarryRows * 8) : j % kCarryDepth;
          const bool exists = first + r < Dk && depth + d < Dk;
          tile[r][d] = exists
                           ? A[kTransposed ? int64_t(depth + d) * Dk + first + r : int64_t(first + r) * Dk + depth + d]
                           : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < kCarryDepth && depth + d < Dk; ++d) {
          const float x = now[(depth + d) * kCarryColumns + column];
#pragma unroll
          for (int r = 0; r < 8; ++r) sums[r] += tile[row + r * kCarryRows][d] * x;
        }
      }
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int a = first + row + r * kCarryRows;
        if (a < Dk) next[a * kCarryColumns + column] = sums[r] + (at < Dv ? B[int64_t(a) * Dv + at] : 0.0f);
      }
    }
    __syncthreads();
    float* const last = now;
    now = next, next = last;
  }
  for (int a = row; a < Dk; a += kCarryRows)
    if (at < Dv) state[(int64_t(head) * Dk + a) * Dv + at] = now[a * kCarryColumns + column];
}
}  // namespace

void gated_delta_rule_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments,
                              DeltaRuleStates states) {
  const bool with_states = states.initial.defined() || states.final.defined();
  if (fast::applies(ctx, in, with_states)) return fast::forward(ctx, o, in, segments, states);
  dispatch_activation("q", in.q, [&]<class X> { any::forward<X>(ctx, o, in, segments, states); });
}

void gated_delta_rule_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o, const DeltaRuleInputs& in,
                               const Segments& segments, DeltaRuleStateGradients states) {
  const bool with_states = states.initial.defined() || states.d_initial.defined() || states.d_final.defined();
  if (fast::applies(ctx, in, with_states)) {
    if (!d_in.q.defined()) return fast::backward_states(ctx, d_o, in, segments, states);
    return fast::backward(ctx, d_in, d_o, in, segments, states);
  }
  dispatch_activation("q", in.q, [&]<class X> { any::backward<X>(ctx, d_in, d_o, in, segments, states); });
}

void gated_delta_rule_transition(Context& ctx, Tensor transition, const DeltaRuleInputs& in, const Segments& segments) {
  // With nothing to write, the rule only passes on: the identity becomes A.
  fill_zero(ctx, transition);
  for (int64_t row = 0; row < transition.dim(0) && !ctx.counts_only(); ++row) {
    if (segments.before(row) == 0 || segments.behind(row) == 0) continue;
    Tensor own = transition.rows(row, row + 1);
    identity_kernel<<<static_cast<unsigned>(ceil_div(own.numel(), 256)), 256, 0, stream_of(ctx)>>>(
        pointer<float>(own), own.numel(), static_cast<int>(own.dim(2)));
    check_launch("gated_delta_rule_transition");
  }
  const DeltaRuleStates states = {transition, transition};
  DeltaRuleInputs passing = in;
  passing.v = {};
  if (fast::applies(ctx, in, true)) return fast::forward(ctx, {}, passing, segments, states);
  Scratch scratch(ctx);
  passing.v = scratch.tensor({in.q.dim(0), in.v.dim(1), in.q.dim(2)}, in.v.dtype());
  fill_zero(ctx, passing.v);
  dispatch_activation("q", in.q, [&]<class X> { any::forward<X>(ctx, {}, passing, segments, states); });
}

void carry_states(Context& ctx, Tensor state, const Tensor& transitions, const Tensor& contributions,
                  const std::vector<int64_t>& parts, StateDirection direction) {
  fill_zero(ctx, state);
  if (ctx.counts_only() || state.numel() == 0) return;
  const int Hv = static_cast<int>(state.dim(0)), Dk = static_cast<int>(state.dim(1)),
            Dv = static_cast<int>(state.dim(2));
  const auto kernel = direction == StateDirection::kBackward ? carry_kernel<true> : carry_kernel<false>;
  const int bytes = 2 * Dk * kCarryColumns * static_cast<int>(sizeof(float));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
  for (size_t first = 0; first < parts.size(); first += Parts::kMost) {
    Parts some = {static_cast<int>(std::min<size_t>(Parts::kMost, parts.size() - first)), {}};
    for (int i = 0; i < some.count; ++i) some.part[i] = static_cast<int>(parts[first + i]);
    kernel<<<dim3(Hv, ceil_div(Dv, kCarryColumns)), kCarryThreads, bytes, stream_of(ctx)>>>(
        pointer<float>(state), pointer<float>(transitions), pointer<float>(contributions), some, Hv, Dk, Dv);
    check_launch("carry_states");
  }
}

Implementation gated_delta_rule_implementation(Context& ctx, const DeltaRuleInputs& in) {
  const int64_t Dk = in.q.dim(2), Dv = in.v.dim(2);
  if (fast::applies(ctx, in, false)) {
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
