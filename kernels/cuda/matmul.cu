#include "kernels/matmul.h"

#include <cublasLt.h>

#include <bit>
#include <map>
#include <tuple>

#include "kernels/core/copy.h"
#include "kernels/cuda/common.cuh"

// Dense products through cuBLASLt. It is column-major, so it is asked for c^T = op(b)^T op(a)^T.
namespace braid::cuda {
namespace {

// Owns a cuBLASLt descriptor.
template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Descriptor {
  Handle handle = nullptr;
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (handle) kDestroy(handle);
  }
};

cudaDataType_t cublas_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

struct Layout : Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> {
  explicit Layout(const Tensor& t) {  // a row-major matrix, read as its column-major transpose
    check_cublas(cublasLtMatrixLayoutCreate(&handle, cublas_type(t.dtype()), t.dim(1), t.dim(0), t.dim(1)),
                 "cublasLtMatrixLayoutCreate");
  }
};

struct Operation : Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> {
  Operation(Transpose first, Transpose second) {
    check_cublas(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    set(CUBLASLT_MATMUL_DESC_TRANSA, first == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(CUBLASLT_MATMUL_DESC_TRANSB, second == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N);
  }
  void set(cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    check_cublas(cublasLtMatmulDescSetAttribute(handle, attribute, &value, sizeof value), "cublasLtMatmulDescSet");
  }
};

struct Preference : Descriptor<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> {
  Preference() { check_cublas(cublasLtMatmulPreferenceCreate(&handle), "cublasLtMatmulPreferenceCreate"); }
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof value),
                 "cublasLtMatmulPreferenceSet");
  }
};

// Largest power of two, up to 256, that divides an address.
uint32_t alignment_of(const Tensor& t) {
  return uint32_t{1} << std::min(8, std::countr_zero(reinterpret_cast<uintptr_t>(t.raw())));
}

// The algorithm for a product is chosen once per shape, layout and alignment, from cuBLASLt's heuristics and not by
// timing, so that two runs choose alike.
using ProductKey = std::tuple<const void*, int64_t, int64_t, int64_t, DType, DType, Transpose, Transpose, Accumulate,
                              uint32_t, uint32_t, uint32_t>;

const cublasLtMatmulAlgo_t& algorithm_for(const Gpu& gpu, const ProductKey& key, const Operation& operation,
                                          const Layout& first, const Layout& second, const Layout& out,
                                          uint32_t first_alignment, uint32_t second_alignment, uint32_t out_alignment) {
  thread_local std::map<ProductKey, cublasLtMatmulAlgo_t> chosen;
  const auto found = chosen.find(key);
  if (found != chosen.end()) return found->second;
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(gpu.cublas_workspace_bytes));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment);
  cublasLtMatmulHeuristicResult_t result;
  int num_results = 0;
  check_cublas(cublasLtMatmulAlgoGetHeuristic(gpu.cublas, operation.handle, first.handle, second.handle, out.handle,
                                              out.handle, preference.handle, 1, &result, &num_results),
               "cublasLtMatmulAlgoGetHeuristic");
  check<EnvironmentError>(num_results > 0, "cuBLASLt has no algorithm for this product");
  return chosen.emplace(key, result.algo).first->second;
}

}  // namespace

void matmul(Context& ctx, Tensor c, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Accumulate accumulate) {
  const int64_t M = c.dim(0), N = c.dim(1), K = transpose_a == Transpose::kNo ? a.dim(1) : a.dim(0);
  if (K == 0) {
    if (accumulate == Accumulate::kNo) fill_zero(ctx, c);
    return;
  }
  const Gpu& gpu = ctx.gpu();
  const Operation operation(transpose_b, transpose_a);
  const Layout first(b), second(a), out(c);
  const uint32_t alignments[] = {alignment_of(b), alignment_of(a), alignment_of(c)};
  const ProductKey key = {
      &gpu,         M, N, K, a.dtype(), c.dtype(), transpose_a, transpose_b, accumulate, alignments[0], alignments[1],
      alignments[2]};
  const cublasLtMatmulAlgo_t& algorithm =
      algorithm_for(gpu, key, operation, first, second, out, alignments[0], alignments[1], alignments[2]);
  const float one = 1, beta = accumulate == Accumulate::kYes ? 1 : 0;
  check_cublas(cublasLtMatmul(gpu.cublas, operation.handle, &one, b.raw(), first.handle, a.raw(), second.handle, &beta,
                              c.raw(), out.handle, c.raw(), out.handle, &algorithm, gpu.cublas_workspace.get(),
                              static_cast<size_t>(gpu.cublas_workspace_bytes), gpu.stream),
               "cublasLtMatmul");
}

Implementation matmul_implementation(const Context&, DType dtype, int64_t width) {
  const std::string name = concat("cuBLASLt ", cublasLtGetVersion());
  if (width * size_of(dtype) % 16 == 0) return {name, ""};
  return {name, concat("rows of ", width, " are no multiple of 16 bytes, as its tensor-core kernels want them")};
}

}  // namespace braid::cuda
