#include "kernels/attention.h"

#include <cstdio>
#include <cub/block/block_scan.cuh>

#include "kernels/build_config.h"
#include "kernels/core/copy.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/row_access.cuh"

namespace braid::cuda {
namespace {

constexpr int kWarps = 8;  // of a block, which takes a row (a head of a token) per warp

// y = o * sigmoid(gate), a warp per row. Reads o and gate, writes y: 6 Dh bytes per row in bf16.
template <class V, class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    gate_forward_kernel(X* y, const X* o, const X* q_gate, int64_t num_rows, int64_t Dh) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= num_rows) return;
  for (int64_t d = threadIdx.x * V::kSize; d < Dh; d += kWarpSize * V::kSize) {
    const V value = V::load(o + row * Dh + d), gate = V::load(q_gate + (2 * row + 1) * Dh + d);
    V out;
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) out.set(i, value[i] * sigmoid(gate[i]));
    out.store(y + row * Dh + d);
  }
}

// d_o = d_y * sigmoid(gate), d_gate = d_o * o * (1 - sigmoid(gate)), delta = sum of d_o * o, and lse (N, Hq) to
// (B, Hq, T). A warp per row; reads d_y, o and gate, writes d_o and d_gate: 10 Dh bytes per row in bf16.
// Without a gate d_o = d_y.
template <class V, bool kGated, class X>
__global__ void __launch_bounds__(kWarpSize* kWarps)
    gate_backward_kernel(X* d_o, float* delta, float* lse_by_head, X* d_q_gate, const X* d_y, const X* o,
                         const X* q_gate, const float* lse, int64_t N, int Hq, int64_t Dh, int64_t T) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (row >= N * Hq) return;
  float sum = 0;
  for (int64_t d = threadIdx.x * V::kSize; d < Dh; d += kWarpSize * V::kSize) {
    const V gradient = V::load(d_y + row * Dh + d), value = V::load(o + row * Dh + d);
    V out = gradient;
    if constexpr (kGated) {
      const V gate = V::load(q_gate + (2 * row + 1) * Dh + d);
      V out_gate;
#pragma unroll
      for (int i = 0; i < V::kSize; ++i) {
        const float open = sigmoid(gate[i]), g = gradient[i] * open;
        out.set(i, g);
        out_gate.set(i, g * value[i] * (1 - open));
      }
      out_gate.store(d_q_gate + (2 * row + 1) * Dh + d);
    }
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) sum += out[i] * value[i];  // of the rounded d_o: it cancels products with it
    out.store(d_o + row * Dh + d);
  }
  sum = warp_sum(sum);
  if (threadIdx.x != 0) return;
  delta[row] = sum;
  const int64_t n = row / Hq, head = row % Hq;
  if (lse_by_head) lse_by_head[(n / T * Hq + head) * T + n % T] = lse[row];
}

// Without a gate y = o, which may be one tensor.
void gate_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in) {
  if (ctx.counts_only()) return;
  if (!in.q_gate.defined()) {
    if (out.y.raw() != out.o.raw()) copy(ctx, out.y, out.o);
    return;
  }
  const int64_t num_rows = in.q.dim(0) * in.q.dim(1), Dh = in.q.dim(2);
  dispatch_activation("q", in.q, [&]<class X> {
    dispatch_width<X>(Dh, {out.y.raw(), out.o.raw(), in.q_gate.raw()}, [&]<class V> {
      gate_forward_kernel<V><<<ceil_div(num_rows, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(out.y), pointer<X>(out.o), pointer<X>(in.q_gate), num_rows, Dh);
      check_launch("attention_forward gate");
    });
  });
}

// lse_by_head may be left undefined.
void gate_backward(Context& ctx, AttentionOutputGradient& d_out, Tensor& lse_by_head, Tensor& d_q_gate,
                   const Tensor& d_y, const AttentionTensors& in, const AttentionOutputs& out, int64_t row_tokens) {
  if (ctx.counts_only()) return;
  const int64_t N = in.q.dim(0), Hq = in.q.dim(1), Dh = in.q.dim(2);
  dispatch_activation("q", in.q, [&]<class X> {
    dispatch_width<X>(Dh, {d_y.raw(), out.o.raw(), in.q_gate.raw(), d_q_gate.raw()}, [&]<class V> {
      const auto kernel = in.q_gate.defined() ? gate_backward_kernel<V, true, X> : gate_backward_kernel<V, false, X>;
      kernel<<<ceil_div(N * Hq, kWarps), dim3(kWarpSize, kWarps), 0, stream_of(ctx)>>>(
          pointer<X>(d_out.d_o), pointer<float>(d_out.delta), pointer<float>(lse_by_head), pointer<X>(d_q_gate),
          pointer<X>(d_y), pointer<X>(out.o), pointer<X>(in.q_gate), pointer<float>(out.lse), N, static_cast<int>(Hq),
          Dh, row_tokens);
      check_launch("attention_backward gate");
    });
  });
}

constexpr int kTableThreads = 1024;

// One block, a stretch of tokens per thread: finds where documents begin, in order.
__global__ void __launch_bounds__(kTableThreads)
    document_tables_kernel(int32_t* begin, int32_t* lengths, int32_t* key_lengths, int32_t* q_offset,
                           int32_t* kv_offset, int32_t* lse_offset, Documents documents, int64_t N, int bound,
                           int q_row, int kv_row, int lse_row) {
  using Scan = cub::BlockScan<int, kTableThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t stretch = (N + kTableThreads - 1) / kTableThreads;
  const int64_t first = min(N, threadIdx.x * stretch), last = min(N, first + stretch);
  int count = 0, before, total;
  for (int64_t n = first; n < last; ++n) count += documents.begin[n] == n;
  Scan(storage).ExclusiveSum(count, before, total);
  if (total > bound) {  // only if a graph captured for fewer documents is replayed: better no result than a wrong one
    if (threadIdx.x == 0) printf("attention: %d documents, but the graph was captured for at most %d\n", total, bound);
    __trap();
  }
  for (int64_t n = first; n < last; ++n)
    if (documents.begin[n] == n) begin[before++] = static_cast<int32_t>(n);
  for (int d = total + threadIdx.x; d <= bound; d += kTableThreads) begin[d] = static_cast<int32_t>(N);
  __syncthreads();
  for (int d = threadIdx.x; d <= bound; d += kTableThreads) {
    const int32_t n = begin[d], first_key = documents.first_key(n);
    if (d < bound) {
      lengths[d] = begin[d + 1] - n;
      key_lengths[d] = documents.first_key(begin[d + 1]) - first_key;
    }
    q_offset[d] = n * q_row;
    kv_offset[d] = first_key * kv_row;
    lse_offset[d] = n * lse_row;
  }
}

std::string why_not_cudnn(Context& ctx, const AttentionTensors& in, const Segments& segments, bool backward) {
  if constexpr (kWithCudnn)
    return backward ? why_not_cudnn_backward(ctx, in, segments) : why_not_cudnn_forward(ctx, in, segments);
  return "not part of this build";
}

}  // namespace

DocumentTables make_document_tables(Context& ctx, Scratch& scratch, const AttentionTensors& in,
                                    const Segments& segments, int64_t bound) {
  const int64_t N = in.q.dim(0), Hq = in.q.dim(1), Hkv = in.k.dim(1), Dh = in.q.dim(2);
  Tensor begin = scratch.tensor({bound + 1}, DType::kI32);
  DocumentTables tables = {scratch.tensor({bound}, DType::kI32), scratch.tensor({bound}, DType::kI32),
                           scratch.tensor({bound + 1}, DType::kI32), scratch.tensor({bound + 1}, DType::kI32),
                           scratch.tensor({bound + 1}, DType::kI32)};
  if (ctx.counts_only()) return tables;
  document_tables_kernel<<<1, kTableThreads, 0, stream_of(ctx)>>>(
      pointer<int32_t>(begin), pointer<int32_t>(tables.lengths), pointer<int32_t>(tables.key_lengths),
      pointer<int32_t>(tables.q_offset), pointer<int32_t>(tables.kv_offset), pointer<int32_t>(tables.lse_offset),
      documents_of(segments), N, static_cast<int>(bound), static_cast<int>(Hq * Dh), static_cast<int>(Hkv * Dh),
      static_cast<int>(Hq));
  check_launch("attention documents");
  return tables;
}

void attention_forward(Context& ctx, AttentionOutputs out, const AttentionTensors& in, const Segments& segments) {
  if constexpr (kWithCudnn) {
    if (why_not_cudnn_forward(ctx, in, segments).empty()) {
      cudnn_attention_forward(ctx, out, in, segments);
      return gate_forward(ctx, out, in);
    }
  }
  if (ctx.counts_only()) return;  // the own kernels take none
  if (mma_attention_supports(ctx, in)) return mma_attention_forward(ctx, out, in, segments);
  fma_attention_forward(ctx, out, in, segments);
  gate_forward(ctx, out, in);
}

void attention_backward(Context& ctx, AttentionGradients d_in, const Tensor& d_y, const AttentionTensors& in,
                        const AttentionOutputs& out, const Segments& segments) {
  const int64_t N = in.q.dim(0), Hq = in.q.dim(1);
  Scratch scratch(ctx);
  AttentionOutputGradient d_out = {scratch.tensor(in.q.shape(), in.q.dtype()), scratch.tensor({N, Hq}, DType::kF32)};
  Tensor lse_by_head;
  if (wgmma_attention_supports(ctx, in)) {
    gate_backward(ctx, d_out, lse_by_head, d_in.q_gate, d_y, in, out, segments.row_tokens);
    return wgmma_attention_backward(ctx, d_in, d_out, in, out, segments);
  }
  if constexpr (kWithCudnn) {
    if (why_not_cudnn_backward(ctx, in, segments).empty()) {
      lse_by_head = scratch.tensor({segments.num_rows, Hq, segments.row_tokens}, DType::kF32);
      gate_backward(ctx, d_out, lse_by_head, d_in.q_gate, d_y, in, out, segments.row_tokens);
      return cudnn_attention_backward(ctx, d_in, d_out.d_o, lse_by_head, in, out, segments);
    }
  }
  gate_backward(ctx, d_out, lse_by_head, d_in.q_gate, d_y, in, out, segments.row_tokens);
  if (ctx.counts_only()) return;
  if (mma_attention_supports(ctx, in)) return mma_attention_backward(ctx, d_in, d_out, in, out, segments);
  fma_attention_backward(ctx, d_in, d_out, in, out, segments);
}

AttentionImplementation attention_implementation(Context& ctx, const AttentionTensors& in, const Segments& segments) {
  const bool on_tensor_cores = mma_attention_supports(ctx, in);
  const std::string own = on_tensor_cores ? "tensor-core kernel" : "fp32 kernel";
  auto name = [&](bool backward) {
    const std::string why_not = why_not_cudnn(ctx, in, segments, backward);
    return why_not.empty() ? std::string("cuDNN") : own + " (cuDNN: " + why_not + ")";
  };
  AttentionImplementation result = {name(false), wgmma_attention_supports(ctx, in) ? "Hopper kernel" : name(true), ""};
  if (!on_tensor_cores && (result.forward != "cuDNN" || result.backward != "cuDNN"))
    result.why_slow =
        concat("heads of ", in.q.dim(2), " in ", name_of(in.q.dtype()),
               " run in fp32 arithmetic; the tensor-core kernels take bf16 and multiples of 16 up to 256");
  else if (!kWithCudnn && ctx.gpu().compute_capability >= 90)
    result.why_slow = "this build has no cuDNN, whose forward is faster than the own tensor-core kernel";
  return result;
}

}  // namespace braid::cuda
