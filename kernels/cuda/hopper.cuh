#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/mma.cuh"

// What Hopper does asynchronously: bulk copies of tensor tiles into shared memory (TMA), barriers that count their
// bytes, and products of a warpgroup (wgmma) on tiles in shared memory. For sm_90a alone: kernels that use these have a
// body only there (kOnHopper), and run only where `has_hopper_kernels` says so. Source: PTX ISA, sections "mbarrier",
// "cp.async.bulk.tensor", "wgmma".
namespace braid::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kOnHopper = true;
#else
inline constexpr bool kOnHopper = false;
#endif

// Is this GPU a Hopper, and does this build hold machine code of sm_90a?
bool has_hopper_kernels(const Context& ctx);

inline constexpr int kWarpgroup = 128;  // threads; four consecutive warps

// Tiles lie in shared memory as lines of 128 bytes, 64 bf16 or 32 floats, whose 16-byte chunks are exchanged by the
// line's last three bits (the 128-byte swizzle); a tile begins at a multiple of 1024 bytes.
inline constexpr int kLine = 64;
inline constexpr int kSwizzleBytes = 1024;

// ---- Host: what a copy needs to know of a tensor --------------------------------------------------------------------

// A tensor of T (bf16, float) in device memory, innermost dimension first, and the box of it that one copy takes; what
// lies outside of the tensor arrives as zeros, and does not arrive in it. Address and strides (in elements, of the
// dimensions from the second on) must be multiples of 16 bytes; box[0] is a line.
template <class T, int kRank>
struct TensorBox {
  const T* data;
  int64_t size[kRank];
  int64_t stride[kRank - 1];
  int box[kRank];
};
CUtensorMap make_tensor_map(DType dtype, const void* data, int rank, const int64_t* size, const int64_t* stride,
                            const int* box);
template <class T, int kRank>
CUtensorMap make_tensor_map(const TensorBox<T, kRank>& t) {
  return make_tensor_map(std::is_same_v<T, float> ? DType::kF32 : DType::kBF16, t.data, kRank, t.size, t.stride, t.box);
}

// ---- Barriers in shared memory --------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes the initialised barriers visible to copies.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and tells the barrier to wait for this many bytes of copies as well.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase with this parity.
__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Barrier number `id` among `threads` threads of the block, whole warps.
__device__ __forceinline__ void sync_threads(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Ordinary writes of this thread to shared memory become visible to copies and products that follow a barrier.
__device__ __forceinline__ void fence_shared_writes() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Copies ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One thread; `barrier` gets the bytes of the whole box, what is outside of the tensor included.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap& map, uint64_t* barrier, int x, int y, int z,
                                         int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// Consecutive bytes, a multiple of 16, from and to addresses that are. One thread.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// The same and a box from shared to device memory. Shared memory may be written again when wait_for_added has returned.
__device__ __forceinline__ void store_bytes(void* to, uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ __forceinline__ void store_box(const CUtensorMap& map, uint32_t from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(from), "r"(x), "r"(y), "r"(z)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Adds a box in shared memory to a tensor of floats, in the L2 cache. What the tensor gets is the same every time as
// long as only one box is added to an element. One thread; the box may be written again when wait_for_added has
// returned.
__device__ __forceinline__ void add_box(const CUtensorMap& map, uint32_t from, int x, int y, int z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(from), "r"(x), "r"(y), "r"(z)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until all boxes that this thread has added or stored are where they go.
__device__ __forceinline__ void wait_for_results() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Until of the boxes that this thread has added or stored, all but the last so many have been read.
template <int kPending>
__device__ __forceinline__ void wait_for_added() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- Products -------------------------------------------------------------------------------------------------------

// A factor of a product of depth 16 with its corner at `address`. Lines along K: one line per row or column, 64 deep.
// Lines along M or N: one line per step of depth, and `block_bytes` from 64 rows or columns to the next 64.
template <Major kMajor>
__device__ __forceinline__ uint64_t factor(uint32_t address, uint32_t block_bytes) {
  const uint64_t leading = kMajor == Major::kK ? 1 : block_bytes >> 4;
  return uint64_t(address >> 4 & 0x3fff) | leading << 16 | uint64_t(kSwizzleBytes >> 4) << 32 | uint64_t{1} << 62;
}
// Bytes from a factor to the one 16 deeper, within a line or over 16 lines.
template <Major kMajor>
inline constexpr uint32_t kFactorStep = kMajor == Major::kK ? 32 : 16 * 128;

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most so many groups of products, the youngest, are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// c (64, 256) = a (64, 16) b (16, 256) + (add ? c : 0), by the 128 threads of a warpgroup. Warp w has rows 16 w to
// 16 w + 15; in c, four numbers per 8 columns: a lane's two columns, lane % 4 * 2 and the next, of row lane / 4, then
// of row lane / 4 + 8.
template <Major kMajorA, Major kMajorB>
__device__ __forceinline__ void multiply_add_256(float (&c)[128], uint64_t a, uint64_t b, bool add) {
#define BRAID_F4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define BRAID_F16(i) BRAID_F4(i), BRAID_F4(i + 4), BRAID_F4(i + 8), BRAID_F4(i + 12)
#define BRAID_F64(i) BRAID_F16(i), BRAID_F16(i + 16), BRAID_F16(i + 32), BRAID_F16(i + 48)
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, add, 1, 1, %131, %132;\n"
      "}\n"
      : BRAID_F64(0), BRAID_F64(64)
      : "l"(a), "l"(b), "r"(int(add)), "n"(kMajorA == Major::kMn ? 1 : 0), "n"(kMajorB == Major::kMn ? 1 : 0));
#undef BRAID_F4
#undef BRAID_F16
#undef BRAID_F64
}

#define BRAID_C8(i)                                                                                           \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
      "+f"(c[i + 7])
#define BRAID_C32(i) BRAID_C8(i), BRAID_C8(i + 8), BRAID_C8(i + 16), BRAID_C8(i + 24)

// c (64, kColumns) = a (64, 16) b (16, kColumns) + (add ? c : 0), like multiply_add_256; `a`, in registers, lies as the
// sums of two blocks of 8 columns do (mma.cuh).
template <int kColumns, Major kMajorB>
__device__ __forceinline__ void multiply_add(float* c, const LeftFactor& a, uint64_t b, bool add) {
  constexpr int kTransposeB = kMajorB == Major::kMn ? 1 : 0;
  if constexpr (kColumns == 64) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}\n"
        : BRAID_C32(0)
        : "r"(a.block[0]), "r"(a.block[1]), "r"(a.block[2]), "r"(a.block[3]), "l"(b), "r"(int(add)), "n"(kTransposeB));
  } else if constexpr (kColumns == 256) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, add, 1, 1, %134;\n}\n"
        : BRAID_C32(0), BRAID_C32(32), BRAID_C32(64), BRAID_C32(96)
        : "r"(a.block[0]), "r"(a.block[1]), "r"(a.block[2]), "r"(a.block[3]), "l"(b), "r"(int(add)), "n"(kTransposeB));
  } else {
    static_assert(kColumns == 128);
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}\n"
        : BRAID_C32(0), BRAID_C32(32)
        : "r"(a.block[0]), "r"(a.block[1]), "r"(a.block[2]), "r"(a.block[3]), "l"(b), "r"(int(add)), "n"(kTransposeB));
  }
}

// The same with both factors in shared memory.
template <int kColumns, Major kMajorA, Major kMajorB>
__device__ __forceinline__ void multiply_add(float* c, uint64_t a, uint64_t b, bool add) {
  constexpr int kTransposeA = kMajorA == Major::kMn ? 1 : 0, kTransposeB = kMajorB == Major::kMn ? 1 : 0;
  if constexpr (kColumns == 32) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "%16, %17, add, 1, 1, %19, %20;\n}\n"
        : BRAID_C8(0), BRAID_C8(8)
        : "l"(a), "l"(b), "r"(int(add)), "n"(kTransposeA), "n"(kTransposeB));
  } else {
    static_assert(kColumns == 64);
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, %35, %36;\n}\n"
        : BRAID_C32(0)
        : "l"(a), "l"(b), "r"(int(add)), "n"(kTransposeA), "n"(kTransposeB));
  }
}
#undef BRAID_C8
#undef BRAID_C32

// Ties sums to this point: behind wait_for_products, nothing reads them earlier.
template <int kCount>
__device__ __forceinline__ void hold(float (&c)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

// The address of 8 numbers of a tile: line, and which eight of it.
__device__ __forceinline__ uint32_t chunk_address(uint32_t tile, int line, int chunk) {
  return tile + line * 128 + ((chunk ^ (line & 7)) << 4);
}

// Four 8 x 8 blocks at these addresses of rows (ldmatrix and its inverse; see load_blocks in mma.cuh).
__device__ __forceinline__ LeftFactor load_factor_transposed(uint32_t row) {
  LeftFactor f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.block[0]), "=r"(f.block[1]), "=r"(f.block[2]), "=r"(f.block[3])
               : "r"(row)
               : "memory");
  return f;
}
__device__ __forceinline__ void store_factor(uint32_t row, const LeftFactor& f) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(f.block[0]),
               "r"(f.block[1]), "r"(f.block[2]), "r"(f.block[3])
               : "memory");
}
__device__ __forceinline__ void store_factor_transposed(uint32_t row, const LeftFactor& f) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(f.block[0]),
               "r"(f.block[1]), "r"(f.block[2]), "r"(f.block[3])
               : "memory");
}

// Four pairs of bf16. Lane q of a quad holds of 32 columns of a row either 8 q to 8 q + 7, or, as products leave them,
// columns 2 q and 2 q + 1 of each 8; the transpose leads from one to the other.
struct Quad {
  uint32_t v[4];

  __device__ __forceinline__ static Quad load(const bf16* from) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    return {{x.x, x.y, x.z, x.w}};
  }

  __device__ __forceinline__ void transpose() {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    exchange(v[0], v[1], odd, 1);
    exchange(v[2], v[3], odd, 1);
    exchange(v[0], v[2], upper, 2);
    exchange(v[1], v[3], upper, 2);
  }
  __device__ __forceinline__ void store(bf16* to) const {
    *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
  }

 private:
  __device__ __forceinline__ static void exchange(uint32_t& low, uint32_t& high, bool second, int distance) {
    const uint32_t received = __shfl_xor_sync(kAllLanes, second ? low : high, distance);
    if (second) low = received;
    else high = received;
  }
};

// Registers per thread of a warpgroup, which shares those of the block with the others.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace braid::cuda
