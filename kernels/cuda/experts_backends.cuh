#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/experts.h"

// What the ways to multiply rows grouped by expert share. experts.cu cuts the rows into tiles and chooses one.
namespace braid::cuda {

inline constexpr int kExpertTileRows = 128;

struct RowTile {
  int32_t expert, begin, rows;  // 0 rows: not used, as are all tiles behind it
};

// On the device.
struct ExpertGroups {
  const int32_t* row_begin;  // (El + 1)
  const RowTile* tiles;      // (max_tiles)
  int64_t max_tiles;
};

// Products whose rows are the rows of activations: block (tile, n) with n fastest, so that blocks that run together
// share rows and an expert's weight in the L2 cache.
struct RowGrid {
  ExpertGroups groups;
  int column_tiles;

  dim3 size() const { return dim3(static_cast<unsigned>(groups.max_tiles * column_tiles)); }
  __device__ RowTile row_tile() const { return groups.tiles[blockIdx.x / column_tiles]; }
  __device__ int column_tile() const { return blockIdx.x % column_tiles; }
};

__device__ __forceinline__ float swiglu(float a, float b, float gate) { return gate * a * sigmoid(a) * b; }

struct SwigluGradient {
  float d_a, d_b, h, d_gate;
};
__device__ __forceinline__ SwigluGradient swiglu_gradient(float d_h, float a, float b, float gate) {
  const float s = sigmoid(a), act = a * s, d_product = gate * d_h;
  return {d_product * b * (s + act * (1 - s)), d_product * act, gate * act * b, d_h * act * b};
}

// d_row_gate (R) from parts (R, num_parts), added in order.
void sum_gate_parts(Context& ctx, Tensor d_row_gate, const float* parts, int64_t num_parts, const ExpertGroups& groups,
                    int64_t El);

// On tensor cores: bf16, C and F multiples of 8, 16-byte aligned; by Hopper's warpgroup instructions, or by those of
// every GPU since sm_80. The arguments are those of the operators; rows of h (R, F) are scratch. The portable ones
// always add to d_weights.
void wgmma_experts_forward(Context& ctx, const ExpertGroups& groups, Tensor out, Tensor gate_up_out, Tensor h,
                           const Tensor& x, const Tensor& row_gate, const ExpertWeights& weights);
void wgmma_experts_backward_input(Context& ctx, const ExpertGroups& groups, Tensor d_x, Tensor d_row_gate,
                                  ExpertHidden hidden, const Tensor& d_out, const Tensor& row_gate,
                                  const Tensor& gate_up_out, const ExpertWeights& weights);
void wgmma_experts_backward_weight(Context& ctx, const ExpertGroups& groups, ExpertWeights d_weights,
                                   const ExpertHidden& hidden, const Tensor& d_out, const Tensor& x,
                                   Accumulate accumulate);
decltype(wgmma_experts_forward) mma_experts_forward;
decltype(wgmma_experts_backward_input) mma_experts_backward_input;
void mma_experts_backward_weight(Context& ctx, const ExpertGroups& groups, ExpertWeights d_weights,
                                 const ExpertHidden& hidden, const Tensor& d_out, const Tensor& x);

}  // namespace braid::cuda
