#include "kernels/matmul.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/core/copy.h"
#include "kernels/cuda/matmul_library.h"

namespace braid::cuda {
namespace {

cudaDataType_t cublas_type(DType dtype) { return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F; }

cublasOperation_t cublas_operation(Transpose transpose) {
  return transpose == Transpose::kYes ? CUBLAS_OP_T : CUBLAS_OP_N;
}

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

}  // namespace

ProductCall::ProductCall(const Product& p) : product_(p) {
  check_cublas(cublasLtMatmulDescCreate(&operation_.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate");
  auto set = [&](cublasLtMatmulDescAttributes_t attribute, cublasOperation_t value) {
    check_cublas(cublasLtMatmulDescSetAttribute(operation_.handle, attribute, &value, sizeof value),
                 "cublasLtMatmulDescSet");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, cublas_operation(p.transpose_b));
  set(CUBLASLT_MATMUL_DESC_TRANSB, cublas_operation(p.transpose_a));
  const bool a_turned = p.transpose_a == Transpose::kYes, b_turned = p.transpose_b == Transpose::kYes;
  set_layout(a_, p.factors, a_turned ? p.K : p.M, a_turned ? p.M : p.K);
  set_layout(b_, p.factors, b_turned ? p.N : p.K, b_turned ? p.K : p.N);
  set_layout(c_, p.out, p.M, p.N);
}

// A row-major matrix, read as its column-major transpose.
void ProductCall::set_layout(Layout& layout, DType dtype, int64_t rows, int64_t columns) {
  check_cublas(cublasLtMatrixLayoutCreate(&layout.handle, cublas_type(dtype), static_cast<uint64_t>(columns),
                                          static_cast<uint64_t>(rows), columns),
               "cublasLtMatrixLayoutCreate");
}

void ProductCall::run(const Gpu& gpu, void* c, const void* a, const void* b,
                      const cublasLtMatmulAlgo_t& algorithm) const {
  const float one = 1, beta = product_.accumulate == Accumulate::kYes ? 1 : 0;
  check_cublas(cublasLtMatmul(gpu.cublas, operation_.handle, &one, b, b_.handle, a, a_.handle, &beta, c, c_.handle, c,
                              c_.handle, &algorithm, gpu.cublas_workspace.get(),
                              static_cast<size_t>(gpu.cublas_workspace_bytes), gpu.stream),
               "cublasLtMatmul");
}

std::vector<cublasLtMatmulAlgo_t> ProductCall::proposed(const Gpu& gpu, int most, uint32_t c_alignment,
                                                        uint32_t a_alignment, uint32_t b_alignment,
                                                        uint32_t reductions) const {
  Preference preference;
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(gpu.cublas_workspace_bytes));
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_alignment);
  preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
  int count = 0;
  check_cublas(cublasLtMatmulAlgoGetHeuristic(gpu.cublas, operation_.handle, b_.handle, a_.handle, c_.handle, c_.handle,
                                              preference.handle, most, results.data(), &count),
               "cublasLtMatmulAlgoGetHeuristic");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  check<EnvironmentError>(!algorithms.empty(), "cuBLASLt has no algorithm for the product ", product_.name());
  return algorithms;
}

bool ProductCall::allows(const Gpu& gpu, const cublasLtMatmulAlgo_t& algorithm) const {
  for (auto attribute : {CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_A_BYTES, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_B_BYTES,
                         CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_C_BYTES, CUBLASLT_ALGO_CAP_MIN_ALIGNMENT_D_BYTES}) {
    uint32_t bytes = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoCapGetAttribute(&algorithm, attribute, &bytes, sizeof bytes, &written) !=
            CUBLAS_STATUS_SUCCESS ||
        bytes > kTableAlignment)
      return false;
  }
  cublasLtMatmulHeuristicResult_t result;
  return cublasLtMatmulAlgoCheck(gpu.cublas, operation_.handle, b_.handle, a_.handle, c_.handle, c_.handle, &algorithm,
                                 &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<size_t>(gpu.cublas_workspace_bytes);
}

bool ProductCall::init(const Gpu& gpu, int id, cublasLtMatmulAlgo_t& algorithm) const {
  const cudaDataType_t factors = cublas_type(product_.factors), out = cublas_type(product_.out);
  return cublasLtMatmulAlgoInit(gpu.cublas, CUBLAS_COMPUTE_32F, CUDA_R_32F, factors, factors, out, out, id,
                                &algorithm) == CUBLAS_STATUS_SUCCESS;
}

MatmulAlgorithms::MatmulAlgorithms(const Gpu& gpu) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, gpu.device_index), "cudaGetDeviceProperties");
  scope_ = {properties.name, static_cast<int64_t>(cublasLtGetVersion())};
  const auto& scopes = AlgorithmTable::shipped().scopes;
  const auto found = scopes.find(scope_);
  if (found != scopes.end()) stored_ = &found->second;
}

const cublasLtMatmulAlgo_t& MatmulAlgorithms::operator()(const Gpu& gpu, const Product& product,
                                                         const ProductCall& call, uint32_t c_alignment,
                                                         uint32_t a_alignment, uint32_t b_alignment) {
  const Key key = {product, c_alignment, a_alignment, b_alignment};
  const auto known = chosen_.find(key);
  if (known != chosen_.end()) return known->second.algorithm;
  if (stored_ && std::min({c_alignment, a_alignment, b_alignment}) >= kTableAlignment) {
    const auto stored = stored_->find(product);
    cublasLtMatmulAlgo_t algorithm;
    static_assert(sizeof algorithm.data == sizeof stored->second.words);
    if (stored != stored_->end()) {
      std::memcpy(algorithm.data, stored->second.words.data(), sizeof algorithm.data);
      if (call.allows(gpu, algorithm)) return chosen_.emplace(key, Choice{algorithm, true}).first->second.algorithm;
    }
  }
  const cublasLtMatmulAlgo_t first =
      call.proposed(gpu, 1, c_alignment, a_alignment, b_alignment, CUBLASLT_REDUCTION_SCHEME_MASK).front();
  return chosen_.emplace(key, Choice{first, false}).first->second.algorithm;
}

AlgorithmCounts MatmulAlgorithms::counts() const {
  std::map<Product, bool> is_stored;  // a product may stand for several alignments
  for (const auto& [key, choice] : chosen_) {
    const Product& product = std::get<0>(key);
    if (!is_worth_tuning(product)) continue;
    is_stored.emplace(product, true).first->second &= choice.is_stored;
  }
  AlgorithmCounts counts;
  for (const auto& [product, stored] : is_stored) ++(stored ? counts.stored : counts.proposed);
  return counts;
}

std::vector<Product> MatmulAlgorithms::products() const {
  std::vector<Product> products;
  for (const auto& [key, choice] : chosen_) {
    const Product& product = std::get<0>(key);
    if (is_worth_tuning(product) && (products.empty() || products.back() != product)) products.push_back(product);
  }
  return products;
}

void MatmulAlgorithms::take(const Product& product, const cublasLtMatmulAlgo_t& algorithm) {
  for (auto& [key, choice] : chosen_) {
    const auto& [of, c_alignment, a_alignment, b_alignment] = key;
    if (of == product && std::min({c_alignment, a_alignment, b_alignment}) >= kTableAlignment)
      choice = {algorithm, true};
  }
}

MatmulAlgorithms& matmul_algorithms(const Context& ctx) {
  thread_local std::map<int, MatmulAlgorithms> of_device;
  return of_device.try_emplace(ctx.gpu().device_index, ctx.gpu()).first->second;
}

void matmul(Context& ctx, Tensor c, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
            Accumulate accumulate) {
  if (ctx.counts_only()) return;  // its workspace is the device's
  const int64_t M = c.dim(0), N = c.dim(1), K = transpose_a == Transpose::kNo ? a.dim(1) : a.dim(0);
  if (K == 0) {
    if (accumulate == Accumulate::kNo) fill_zero(ctx, c);
    return;
  }
  const Product product = {a.dtype(), c.dtype(), transpose_a, transpose_b, accumulate, M, N, K};
  const ProductCall call(product);
  call.run(ctx.gpu(), c.raw(), a.raw(), b.raw(),
           matmul_algorithms(ctx)(ctx.gpu(), product, call, alignment_of(c), alignment_of(a), alignment_of(b)));
}

Implementation matmul_implementation(const Context& ctx, DType dtype, int64_t width) {
  const int64_t num_stored = matmul_algorithms(ctx).num_stored();
  const std::string name =
      concat("cuBLASLt ", cublasLtGetVersion(), ", ",
             num_stored > 0 ? concat(num_stored, " stored algorithms for this GPU") : "the algorithms it proposes");
  if (width * size_of(dtype) % 16 == 0) return {name, ""};
  return {name, concat("rows of ", width, " are no multiple of 16 bytes, as its tensor-core kernels want them")};
}

AlgorithmCounts matmul_algorithm_counts(const Context& ctx) { return matmul_algorithms(ctx).counts(); }

}  // namespace braid::cuda
