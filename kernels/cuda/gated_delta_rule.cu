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

constexpr int kCarryColumns = 32, kCarryRows = 128, kCarryDepth = 32, kCarryThreads = 256;
constexpr int kCarryTile = kCarryRows * kCarryDepth;  // elements of a transition at a time, 16 a thread

// What a launch carries: of every way, or a piece of one, the row whose state it leads to and the parts on it.
struct Ways {
  static constexpr int kMost = 32, kMostParts = 448;
  struct Way {
    int row, first, count;
  };
  Way way[kMost];
  int part[kMostParts];
};

// A tile of a transition, rows of the product by depth (by rows where it is transposed), on its way to shared memory:
// four float4 a thread, so that the next tile is fetched while this one is used.
template <bool kTransposed>
struct CarryTile {
  static constexpr int kLines = kTransposed ? kCarryDepth : kCarryRows;
  static constexpr int kWidth = kTransposed ? kCarryRows : kCarryDepth, kStride = kWidth + 4;  // no bank twice
  static constexpr int kFetches = kCarryTile / 4 / kCarryThreads;
  float4 fetched[kFetches];

  // From `line` and `column` of A (D, D) on; what lies outside is zero.
  __device__ __forceinline__ void fetch(const float* A, int D, int line, int column) {
#pragma unroll
    for (int j = 0; j < kFetches; ++j) {
      const int at = j * kCarryThreads + threadIdx.x, l = line + at / (kWidth / 4), c = column + at % (kWidth / 4) * 4;
      const float* from = A + int64_t(l) * D + c;
      if (D % 4 == 0) {
        fetched[j] = l < D && c < D ? *reinterpret_cast<const float4*>(from) : float4{};
      } else {
        auto element = [&](int i) { return l < D && c + i < D ? from[i] : 0.0f; };
        fetched[j] = {element(0), element(1), element(2), element(3)};
      }
    }
  }
  __device__ __forceinline__ void store(float* tile) const {
#pragma unroll
    for (int j = 0; j < kFetches; ++j) {
      const int at = j * kCarryThreads + threadIdx.x;
      *reinterpret_cast<float4*>(tile + at / (kWidth / 4) * kStride + at % (kWidth / 4) * 4) = fetched[j];
    }
  }
};

// state = A state + B (A^T state + B), for one part on a way after another. A block owns 32 columns of the state of one
// head at the end of one way, which lie in shared memory; a thread four of them in four of 128 rows. Sums have one
// order. Per part and head 2 Dk Dk Dv FLOP, and A once for every 32 columns.
template <bool kTransposed>
__global__ void __launch_bounds__(kCarryThreads)
    carry_kernel(float* states, const float* transitions, const float* contributions, Ways ways, int Hv, int Dk,
                 int Dv) {
  using Tile = CarryTile<kTransposed>;
  extern __shared__ float4 columns[];
  __shared__ __align__(16) float tile[Tile::kLines * Tile::kStride];
  float4 *now = columns, *next = columns + Dk * (kCarryColumns / 4);  // (Dk, kCarryColumns)
  const Ways::Way way = ways.way[blockIdx.z];
  const int head = blockIdx.x, quad = threadIdx.x % (kCarryColumns / 4), group = threadIdx.x / (kCarryColumns / 4);
  const int column = blockIdx.y * kCarryColumns + 4 * quad;
  auto load = [&](const float* matrix, int row) {  // four columns of (Dk, Dv)
    auto element = [&](int i) { return column + i < Dv ? matrix[int64_t(row) * Dv + column + i] : 0.0f; };
    return float4{element(0), element(1), element(2), element(3)};
  };
  float* const state = states + (int64_t(way.row) * Hv + head) * Dk * Dv;
  for (int row = group; row < Dk; row += kCarryRows / 4) now[row * (kCarryColumns / 4) + quad] = load(state, row);

  const int depths = (Dk + kCarryDepth - 1) / kCarryDepth, tiles = depths * ((Dk + kCarryRows - 1) / kCarryRows);
  auto place = [&](int i) { return int64_t(ways.part[way.first + i]) * Hv + head; };
  Tile ahead;
  auto fetch = [&](int number) {  // of all tiles on the way
    const int row = number % tiles / depths * kCarryRows, depth = number % depths * kCarryDepth;
    ahead.fetch(transitions + place(number / tiles) * Dk * Dk, Dk, kTransposed ? depth : row,
                kTransposed ? row : depth);
  };
  auto row_of = [&](int first, int r) { return first + (kTransposed ? 4 * group + r : group + r * (kCarryRows / 4)); };
  fetch(0);
  float4 sums[4];
  for (int number = 0; number < way.count * tiles; ++number) {
    const int first = number % tiles / depths * kCarryRows, depth = number % depths * kCarryDepth;
    if (depth == 0)
      for (float4& sum : sums) sum = {};
    __syncthreads();
    ahead.store(tile);
    __syncthreads();
    if (number + 1 < way.count * tiles) fetch(number + 1);
    const int end = min(kCarryDepth, Dk - depth);
    auto add = [&](int d, float a0, float a1, float a2, float a3) {
      const float4 x = now[(depth + d) * (kCarryColumns / 4) + quad];
      const float a[4] = {a0, a1, a2, a3};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        sums[r].x += a[r] * x.x, sums[r].y += a[r] * x.y;
        sums[r].z += a[r] * x.z, sums[r].w += a[r] * x.w;
      }
    };
    auto line = [&](int l, int at) { return *reinterpret_cast<const float4*>(tile + l * Tile::kStride + at); };
    if constexpr (kTransposed) {
#pragma unroll 8
      for (int d = 0; d < end; ++d) {
        const float4 a = line(d, 4 * group);
        add(d, a.x, a.y, a.z, a.w);
      }
    } else {
      auto row = [&](int r, int d) { return line(group + r * (kCarryRows / 4), d); };
#pragma unroll 2
      for (int d = 0; d < end; d += 4) {
        const float4 a = row(0, d), b = row(1, d), c = row(2, d), e = row(3, d);
        add(d, a.x, b.x, c.x, e.x);
        if (d + 1 < end) add(d + 1, a.y, b.y, c.y, e.y);
        if (d + 2 < end) add(d + 2, a.z, b.z, c.z, e.z);
        if (d + 3 < end) add(d + 3, a.w, b.w, c.w, e.w);
      }
    }
    if (depth + kCarryDepth < Dk) continue;
    const float* B = contributions + place(number / tiles) * Dk * Dv;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = row_of(first, r);
      if (row >= Dk) continue;
      const float4 b = load(B, row);
      next[row * (kCarryColumns / 4) + quad] = {sums[r].x + b.x, sums[r].y + b.y, sums[r].z + b.z, sums[r].w + b.w};
    }
    if (number % tiles == tiles - 1) {
      float4* const last = now;
      now = next, next = last;
    }
  }
  __syncthreads();
  for (int row = group; row < Dk; row += kCarryRows / 4) {
    const float4 last = now[row * (kCarryColumns / 4) + quad];
    const float element[4] = {last.x, last.y, last.z, last.w};
    for (int i = 0; i < 4 && column + i < Dv; ++i) state[int64_t(row) * Dv + column + i] = element[i];
  }
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

void carry_states(Context& ctx, Tensor states, const Tensor& transitions, const Tensor& contributions,
                  const std::vector<std::vector<int64_t>>& ways, StateDirection direction) {
  fill_zero(ctx, states);
  if (ctx.counts_only() || states.numel() == 0) return;
  const int Hv = static_cast<int>(states.dim(1)), Dk = static_cast<int>(states.dim(2)),
            Dv = static_cast<int>(states.dim(3));
  const auto kernel = direction == StateDirection::kBackward ? carry_kernel<true> : carry_kernel<false>;
  const int bytes = 2 * Dk * kCarryColumns * static_cast<int>(sizeof(float));
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
  Ways some;
  int num_ways = 0, num_parts = 0;
  auto launch = [&] {
    if (num_ways == 0) return;
    kernel<<<dim3(Hv, ceil_div(Dv, kCarryColumns), num_ways), kCarryThreads, bytes, stream_of(ctx)>>>(
        pointer<float>(states), pointer<float>(transitions), pointer<float>(contributions), some, Hv, Dk, Dv);
    check_launch("carry_states");
    num_ways = num_parts = 0;
  };
  for (size_t row = 0; row < ways.size(); ++row)
    for (size_t at = 0; at < ways[row].size();) {
      if (num_ways == Ways::kMost || num_parts == Ways::kMostParts) launch();
      // What does not fit goes on from the state that this launch leaves.
      const int count = static_cast<int>(std::min<size_t>(ways[row].size() - at, Ways::kMostParts - num_parts));
      some.way[num_ways++] = {static_cast<int>(row), num_parts, count};
      for (int i = 0; i < count; ++i) some.part[num_parts++] = static_cast<int>(ways[row][at++]);
    }
  launch();
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
