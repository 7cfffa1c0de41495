#include <cmath>

#include "kernels/cuda/attention_tiles.cuh"

// Attention in plain fp32 arithmetic, for fp32 activations and for head sizes that the tensor-core kernels do not take.
// Panels of kTile tokens x Dh lie in shared memory as fp32. A block has 16 x 16 threads; thread (ty, tx) owns the
// scores of rows ty, ty + 16, .. and columns tx, tx + 16, ..
namespace braid::cuda {
namespace {

constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;
constexpr int kWarps = kThreads / kWarpSize;

// Rows of Dh floats; the odd distance between them lets 32 rows be read at one column without bank conflicts.
struct Panel {
  float* data;
  int stride;
  __device__ __forceinline__ float* row(int r) const { return data + r * stride; }
};

template <int kTile>
struct Layout {
  static constexpr int kSquareStride = kTile + 1;
  int Dh;
  __host__ __device__ int stride() const { return Dh | 1; }
  __host__ __device__ int panel() const { return kTile * stride(); }
  static constexpr int square() { return kTile * kSquareStride; }
  int64_t forward_bytes() const { return sizeof(float) * (4 * int64_t(panel()) + square() + 3 * kTile); }
  int64_t backward_bytes() const { return sizeof(float) * (6 * int64_t(panel()) + 2 * square() + 2 * kTile); }
};

// Rows from `end` on become 0.
template <int kTile, class X>
__device__ __forceinline__ void load(Panel to, const X* from, int64_t stride, int Dh, int begin, int end) {
  for (int r = threadIdx.y; r < kTile; r += kSide)
    for (int d = threadIdx.x; d < Dh; d += kSide)
      to.row(r)[d] = begin + r < end ? static_cast<float>(from[(begin + r) * stride + d]) : 0;
}

template <int kTile>
__device__ __forceinline__ void clear(Panel panel, int Dh) {
  for (int r = threadIdx.y; r < kTile; r += kSide)
    for (int d = threadIdx.x; d < Dh; d += kSide) panel.row(r)[d] = 0;
}

// This thread's elements of a b^T.
template <int kMicro>
__device__ __forceinline__ void dot_rows(float (&product)[kMicro][kMicro], Panel a, Panel b, int Dh) {
#pragma unroll
  for (int i = 0; i < kMicro; ++i)
#pragma unroll
    for (int j = 0; j < kMicro; ++j) product[i][j] = 0;
  for (int d = 0; d < Dh; ++d) {
    float left[kMicro], right[kMicro];
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      left[i] = a.row(threadIdx.y + kSide * i)[d];
      right[i] = b.row(threadIdx.x + kSide * i)[d];
    }
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) product[i][j] = fmaf(left[i], right[j], product[i][j]);
  }
}

// sum += square b
template <int kTile>
__device__ __forceinline__ void add_product(Panel sum, const float* square, Panel b, int Dh) {
  constexpr int kMicro = kTile / kSide;
  for (int d = threadIdx.x; d < Dh; d += kSide) {
    float total[kMicro];
#pragma unroll
    for (int i = 0; i < kMicro; ++i) total[i] = sum.row(threadIdx.y + kSide * i)[d];
    for (int j = 0; j < kTile; ++j) {
      const float right = b.row(j)[d];
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
        total[i] = fmaf(square[(threadIdx.y + kSide * i) * Layout<kTile>::kSquareStride + j], right, total[i]);
    }
#pragma unroll
    for (int i = 0; i < kMicro; ++i) sum.row(threadIdx.y + kSide * i)[d] = total[i];
  }
}

// A block owns kTile queries of one head. Per block of keys 4 kTile^2 Dh FLOP.
template <class X, int kTile>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(X* o, float* lse, const X* q, const X* k, const X* v, AttentionProblem problem, float scale) {
  extern __shared__ float shared[];
  constexpr int kMicro = kTile / kSide, kSquareStride = Layout<kTile>::kSquareStride;
  const int Dh = problem.Dh, N = static_cast<int>(problem.N), M = static_cast<int>(problem.M);
  const Layout<kTile> layout = {Dh};
  const Panel queries = {shared, layout.stride()}, keys = {queries.data + layout.panel(), layout.stride()};
  const Panel values = {keys.data + layout.panel(), layout.stride()};
  const Panel sum_pv = {values.data + layout.panel(), layout.stride()};
  float* score = sum_pv.data + layout.panel();
  float *highest = score + layout.square(), *sum_exp = highest + kTile, *rescale = sum_exp + kTile;

  const int head = blockIdx.x, kv_head = head / (problem.Hq / problem.Hkv);
  const int tile_begin = (gridDim.y - 1 - blockIdx.y) * kTile, tile_end = min(tile_begin + kTile, N);
  const int64_t q_stride = int64_t(problem.Hq) * Dh, kv_stride = int64_t(problem.Hkv) * Dh;
  const int thread = threadIdx.y * kSide + threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  load<kTile>(queries, q + head * Dh, q_stride, Dh, tile_begin, tile_end);
  clear<kTile>(sum_pv, Dh);
  if (thread < kTile) {
    highest[thread] = -INFINITY;
    sum_exp[thread] = 0;
  }

  for (KeyBlocks<kTile, kTile> block(problem.documents, tile_begin, tile_end); !block.done; block.next()) {
    __syncthreads();
    load<kTile>(keys, k + kv_head * Dh, kv_stride, Dh, block.key, M);
    load<kTile>(values, v + kv_head * Dh, kv_stride, Dh, block.key, M);
    __syncthreads();
    float s[kMicro][kMicro];
    dot_rows(s, queries, keys, Dh);
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const int row = threadIdx.y + kSide * i, column = threadIdx.x + kSide * j;
        score[row * kSquareStride + column] =
            block.visible(tile_begin + row, block.key + column) ? __fmul_rn(s[i][j], scale) : -INFINITY;
      }
    __syncthreads();
    for (int row = warp; row < kTile; row += kWarps) {  // a lane per key
      const float x = lane < kTile ? score[row * kSquareStride + lane] : -INFINITY;
      const float last = highest[row], now = fmaxf(last, warp_max(x));
      const float offset = now == -INFINITY ? 0 : now;  // nothing seen yet
      const float p = expf(x - offset), sum = warp_sum(p);
      if (lane < kTile) score[row * kSquareStride + lane] = p;
      __syncwarp();
      if (lane == 0) {
        rescale[row] = expf(last - offset);
        highest[row] = now;
        sum_exp[row] = sum_exp[row] * rescale[row] + sum;
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      const int row = threadIdx.y + kSide * i;
      for (int d = threadIdx.x; d < Dh; d += kSide) sum_pv.row(row)[d] *= rescale[row];
    }
    add_product<kTile>(sum_pv, score, values, Dh);
  }

  for (int row = threadIdx.y; row < tile_end - tile_begin; row += kSide) {
    const int64_t at = int64_t(tile_begin + row) * problem.Hq + head;
    const float norm = 1 / sum_exp[row];
    for (int d = threadIdx.x; d < Dh; d += kSide) o[at * Dh + d] = static_cast<X>(sum_pv.row(row)[d] * norm);
    if (threadIdx.x == 0) lse[at] = highest[row] + logf(sum_exp[row]);
  }
}

enum class Owner { kQueries, kKeys };

template <class X>
struct BackwardPointers {
  X *d_q, *d_k, *d_v;
  const X *q, *k, *v, *d_o;
  const float *lse, *delta;
};

// A block owns kTile tokens of one side and walks over blocks of the other, as the tensor-core kernel does:
//   kQueries: d_q += dS k;   kKeys: d_k += dS q, d_v += P d_o, over all query heads of the group
template <class X, int kTile, Owner kOwner>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(BackwardPointers<X> ptr, AttentionProblem problem, float scale) {
  extern __shared__ float shared[];
  constexpr bool kKeys = kOwner == Owner::kKeys;
  constexpr int kMicro = kTile / kSide, kSquareStride = Layout<kTile>::kSquareStride;
  const int Dh = problem.Dh, group = problem.Hq / problem.Hkv;
  const int N = static_cast<int>(problem.N), M = static_cast<int>(problem.M);
  const Layout<kTile> layout = {Dh};
  Panel panel[6];  // rows R1, R2; columns C1, C2; sums of dS C1, P C2
#pragma unroll
  for (int i = 0; i < 6; ++i) panel[i] = {shared + i * layout.panel(), layout.stride()};
  const auto [r1, r2, c1, c2, d_first, d_second] = panel;
  float *prob = shared + 6 * layout.panel(), *d_score = prob + layout.square();
  float *query_lse = d_score + layout.square(), *query_delta = query_lse + kTile;

  const int own_head = blockIdx.x, kv_head = kKeys ? own_head : own_head / group;
  const int tile_begin = (kKeys ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * kTile;
  const int tile_end = min(tile_begin + kTile, kKeys ? M : N);
  const int64_t q_stride = int64_t(problem.Hq) * Dh, kv_stride = int64_t(problem.Hkv) * Dh;
  const int thread = threadIdx.y * kSide + threadIdx.x;
  auto load_queries = [&](Panel q, Panel d_o, int head, int begin, int end) {
    load<kTile>(q, ptr.q + head * Dh, q_stride, Dh, begin, end);
    load<kTile>(d_o, ptr.d_o + head * Dh, q_stride, Dh, begin, end);
    if (thread >= kTile) return;
    const int64_t at = int64_t(begin + thread) * problem.Hq + head;
    query_lse[thread] = begin + thread < end ? ptr.lse[at] : 0;
    query_delta[thread] = begin + thread < end ? ptr.delta[at] : 0;
  };
  auto load_keys = [&](Panel k, Panel v, int begin, int end) {
    load<kTile>(k, ptr.k + kv_head * Dh, kv_stride, Dh, begin, end);
    load<kTile>(v, ptr.v + kv_head * Dh, kv_stride, Dh, begin, end);
  };
  // What remains once the columns are loaded; visible(row, column).
  auto add_block = [&](auto&& visible) {
    float s[kMicro][kMicro], dp[kMicro][kMicro];
    dot_rows(s, r1, c1, Dh);
    dot_rows(dp, r2, c2, Dh);
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        const int row = threadIdx.y + kSide * i, column = threadIdx.x + kSide * j, query = kKeys ? column : row;
        const bool seen = visible(row, column);
        const float p = seen ? expf(__fmul_rn(s[i][j], scale) - query_lse[query]) : 0;
        prob[row * kSquareStride + column] = p;
        d_score[row * kSquareStride + column] = seen ? p * (dp[i][j] - query_delta[query]) * scale : 0;
      }
    __syncthreads();
    add_product<kTile>(d_first, d_score, c1, Dh);
    if constexpr (kKeys) add_product<kTile>(d_second, prob, c2, Dh);
  };

  clear<kTile>(d_first, Dh);
  if constexpr (kKeys) {
    clear<kTile>(d_second, Dh);
    load_keys(r1, r2, tile_begin, tile_end);
    QueryBlocks<kTile, kTile> block(problem.documents, N, group, tile_begin, tile_end);
    for (; !block.done; block.next()) {
      __syncthreads();
      load_queries(c1, c2, kv_head * group + block.head, block.query, N);
      __syncthreads();
      add_block([&](int row, int column) { return block.visible(block.query + column, tile_begin + row); });
    }
  } else {
    load_queries(r1, r2, own_head, tile_begin, tile_end);
    KeyBlocks<kTile, kTile> block(problem.documents, tile_begin, tile_end);
    for (; !block.done; block.next()) {
      __syncthreads();
      load_keys(c1, c2, block.key, M);
      __syncthreads();
      add_block([&](int row, int column) { return block.visible(tile_begin + row, block.key + column); });
    }
  }

  // A thread reads only the sums that it formed itself.
  const int heads = kKeys ? problem.Hkv : problem.Hq;
  for (int row = threadIdx.y; row < tile_end - tile_begin; row += kSide) {
    const int64_t at = (int64_t(tile_begin + row) * heads + own_head) * Dh;
    for (int d = threadIdx.x; d < Dh; d += kSide) {
      (kKeys ? ptr.d_k : ptr.d_q)[at + d] = static_cast<X>(d_first.row(row)[d]);
      if constexpr (kKeys) ptr.d_v[at + d] = static_cast<X>(d_second.row(row)[d]);
    }
  }
}

// Calls body.template operator()<kTile>() with the largest tile whose backward fits a block's shared memory.
template <class Body>
void dispatch_tile(const Context& ctx, int Dh, Body&& body) {
  constexpr int kReservedBytes = 1024;
  const int most_bytes = ctx.gpu().most_shared_bytes;
  if (Layout<32>{Dh}.backward_bytes() + kReservedBytes <= most_bytes) return body.template operator()<32>();
  check<ShapeError>(Layout<16>{Dh}.backward_bytes() + kReservedBytes <= most_bytes, "q: heads of ", Dh,
                    " elements are too wide for this GPU");
  body.template operator()<16>();
}

template <class... Arguments>
void launch(Context& ctx, void (*kernel)(Arguments...), int heads, int64_t num_tiles, int64_t bytes,
            Arguments... arguments) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
  kernel<<<dim3(heads, num_tiles), dim3(kSide, kSide), bytes, stream_of(ctx)>>>(arguments...);
  check_launch("attention");
}

float score_scale(const AttentionProblem& problem) { return 1 / std::sqrt(static_cast<float>(problem.Dh)); }

}  // namespace

void fma_attention_forward(Context& ctx, AttentionOutputs& out, const AttentionTensors& in, const Segments& segments) {
  const AttentionProblem problem = attention_problem(in, segments);
  dispatch_activation("q", in.q, [&]<class X> {
    dispatch_tile(ctx, problem.Dh, [&]<int kTile> {
      launch<X*, float*, const X*, const X*, const X*, AttentionProblem, float>(
          ctx, forward_kernel<X, kTile>, problem.Hq, ceil_div(problem.N, kTile),
          Layout<kTile>{problem.Dh}.forward_bytes(), pointer<X>(out.o), pointer<float>(out.lse), pointer<X>(in.q),
          pointer<X>(in.k), pointer<X>(in.v), problem, score_scale(problem));
    });
  });
}

void fma_attention_backward(Context& ctx, AttentionGradients& d_in, const AttentionOutputGradient& d_out,
                            const AttentionTensors& in, const AttentionOutputs& out, const Segments& segments) {
  const AttentionProblem problem = attention_problem(in, segments);
  dispatch_activation("q", in.q, [&]<class X> {
    const BackwardPointers<X> ptr = {pointer<X>(d_in.q),    pointer<X>(d_in.k),      pointer<X>(d_in.v),
                                     pointer<X>(in.q),      pointer<X>(in.k),        pointer<X>(in.v),
                                     pointer<X>(d_out.d_o), pointer<float>(out.lse), pointer<float>(d_out.delta)};
    dispatch_tile(ctx, problem.Dh, [&]<int kTile> {
      const int64_t bytes = Layout<kTile>{problem.Dh}.backward_bytes();
      launch<BackwardPointers<X>, AttentionProblem, float>(ctx, backward_kernel<X, kTile, Owner::kKeys>, problem.Hkv,
                                                           ceil_div(problem.M, kTile), bytes, ptr, problem,
                                                           score_scale(problem));
      launch<BackwardPointers<X>, AttentionProblem, float>(ctx, backward_kernel<X, kTile, Owner::kQueries>, problem.Hq,
                                                           ceil_div(problem.N, kTile), bytes, ptr, problem,
                                                           score_scale(problem));
    });
  });
}

}  // namespace braid::cuda
