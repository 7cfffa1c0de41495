#pragma once

#include <cstdint>

#include "kernels/cuda/common.cuh"

// What a warp does with a tensor core on any GPU from sm_80 on: products of 16 x 16 by 16 x 8 blocks of bf16 with fp32
// sums, on factors in shared memory or in registers. Lane l works in row g = l / 4 and columns 2q, 2q + 1, q = l % 4,
// of every 8 x 8 block.
namespace braid::cuda {

// The dimension along which an operand's numbers are consecutive in memory: K, or M (N for the right factor).
enum class Major { kK, kMn };

// 16 x 8 sums: row g in element[0..1], row g + 8 in element[2..3].
struct Sums {
  float element[4];
  __device__ __forceinline__ float& operator[](int i) { return element[i]; }
  __device__ __forceinline__ float operator[](int i) const { return element[i]; }
};

// The left factor, 16 (m) x 16 (k), in 8 x 8 blocks: (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8). Two neighbouring
// blocks of Sums lie in registers as one left factor does, so that sums can go on as factors.
struct LeftFactor {
  uint32_t block[4];
};

// The right factor, 16 (k) x 8 (n), in 8 x 8 blocks k, k + 8; and two of them side by side, 16 (k) x 16 (n).
struct RightFactor {
  uint32_t block[2];
};
struct RightFactors {
  RightFactor at[2];
};

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

__device__ __forceinline__ LeftFactor rounded(const Sums& left, const Sums& right) {
  return {{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]),
           pack_bf16(right[2], right[3])}};
}

// c += a b
__device__ __forceinline__ void multiply_add(Sums& c, const LeftFactor& a, const RightFactor& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.element[0]), "+f"(c.element[1]), "+f"(c.element[2]), "+f"(c.element[3])
      : "r"(a.block[0]), "r"(a.block[1]), "r"(a.block[2]), "r"(a.block[3]), "r"(b.block[0]), "r"(b.block[1]));
}

// Four 8 x 8 blocks of shared memory, or their transposes; lane l gives the address of row l % 8 of block l / 8.
__device__ __forceinline__ void load_blocks(uint32_t (&block)[4], const bf16* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_blocks_transposed(uint32_t (&block)[4], const bf16* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
               : "r"(address)
               : "memory");
}

// The transpose of an 8 x 8 block in registers.
__device__ __forceinline__ uint32_t transposed_block(uint32_t block) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(block));
  return result;
}

// 16 bytes from device to shared memory, or zeros if the source does not exist; behind the kernel's back until
// wait_for_copies.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool exists) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A row-major matrix in shared memory whose rows are padded by 16 bytes, so that the rows of a block lie in different
// banks.
template <int kColumns>
struct SharedMatrix {
  static constexpr int kStride = kColumns + 8;
  static_assert(kColumns % 16 == 0 && kStride * sizeof(bf16) % 32 == 16);
  static constexpr int elements(int rows) { return rows * kStride; }
  bf16* data;

  __device__ __forceinline__ bf16* at(int row, int column) const { return data + row * kStride + column; }
  // Elements (row, column) and (row, column + 1), column even.
  __device__ __forceinline__ uint32_t& pair(int row, int column) const {
    return *reinterpret_cast<uint32_t*>(at(row, column));
  }

  // The factor with corner (m, k) of this matrix, or of its transpose: element (k, m) here.
  __device__ __forceinline__ LeftFactor left(int m, int k) const {
    const int lane = threadIdx.x % kWarpSize;
    LeftFactor f;
    load_blocks(f.block, at(m + lane % 16, k + lane / 16 * 8));
    return f;
  }
  __device__ __forceinline__ LeftFactor left_transposed(int m, int k) const {
    const int lane = threadIdx.x % kWarpSize;
    LeftFactor f;
    load_blocks_transposed(f.block, at(k + lane % 8 + lane / 16 * 8, m + lane / 8 % 2 * 8));
    return f;
  }
  __device__ __forceinline__ RightFactors right(int k, int n) const {
    const int lane = threadIdx.x % kWarpSize;
    uint32_t block[4];
    load_blocks_transposed(block, at(k + lane % 16, n + lane / 16 * 8));
    return {{{{block[0], block[1]}}, {{block[2], block[3]}}}};
  }
  __device__ __forceinline__ RightFactors right_transposed(int k, int n) const {
    const int lane = threadIdx.x % kWarpSize;
    uint32_t block[4];
    load_blocks(block, at(n + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    return {{{{block[0], block[1]}}, {{block[2], block[3]}}}};
  }
};

}  // namespace braid::cuda
