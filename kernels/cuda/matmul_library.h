#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/gpu.h"
#include "kernels/matmul_algorithms.h"

// Dense products through cuBLASLt. It is column-major, so it is asked for c^T = op(b)^T op(a)^T: its first factor is b.
namespace braid::cuda {

// A cuBLASLt descriptor.
template <class Handle, const auto& kDestroy>
struct Descriptor {
  Handle handle = nullptr;
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (handle) kDestroy(handle);
  }
};

// A product with its descriptors, ready to be enqueued.
class ProductCall {
 public:
  explicit ProductCall(const Product& product);

  void run(const Gpu& gpu, void* c, const void* a, const void* b, const cublasLtMatmulAlgo_t& algorithm) const;
  // Up to 8 algorithms, the library's first choice first, that may use the GPU's workspace and may reduce in ways of
  // this mask.
  std::vector<cublasLtMatmulAlgo_t> proposed(const Gpu& gpu, int most, uint32_t c_alignment, uint32_t a_alignment,
                                             uint32_t b_alignment, uint32_t reductions) const;
  // Can this algorithm compute it, on this GPU with its workspace, where addresses are multiples of 16 bytes?
  bool allows(const Gpu& gpu, const cublasLtMatmulAlgo_t& algorithm) const;
  // The algorithm with this number, for the dtypes of this product; false if there is none.
  bool init(const Gpu& gpu, int id, cublasLtMatmulAlgo_t& algorithm) const;

 private:
  using Layout = Descriptor<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
  void set_layout(Layout& layout, DType dtype, int64_t rows, int64_t columns);

  Product product_;
  Descriptor<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> operation_;
  Layout a_, b_, c_;
};

inline constexpr uint32_t kTableAlignment = 16;  // of addresses for which stored algorithms serve

// The algorithms that were chosen for a GPU so far, once per product and alignment: those of the shipped table, or the
// first of the library's heuristics, and never by timing, so that two runs choose alike.
class MatmulAlgorithms {
 public:
  explicit MatmulAlgorithms(const Gpu& gpu);

  const cublasLtMatmulAlgo_t& operator()(const Gpu& gpu, const Product& product, const ProductCall& call,
                                         uint32_t c_alignment, uint32_t a_alignment, uint32_t b_alignment);
  AlgorithmCounts counts() const;
  const AlgorithmScope& scope() const { return scope_; }
  int64_t num_stored() const { return stored_ ? std::ssize(*stored_) : 0; }
  // The products worth tuning among them.
  std::vector<Product> products() const;
  // From now on for all addresses that are multiples of 16 bytes.
  void take(const Product& product, const cublasLtMatmulAlgo_t& algorithm);

 private:
  struct Choice {
    cublasLtMatmulAlgo_t algorithm;
    bool is_stored;
  };
  using Key = std::tuple<Product, uint32_t, uint32_t, uint32_t>;  // with the alignments

  AlgorithmScope scope_;
  const std::map<Product, StoredAlgorithm>* stored_ = nullptr;  // of this scope
  std::map<Key, Choice> chosen_;
};

MatmulAlgorithms& matmul_algorithms(const Context& ctx);

// Sums over two tensors x, y of one shape and dtype: of x^2, of (x - y)^2, and how many elements differ (NaN from all).
struct ProductDifference {
  double square = 0, difference = 0;
  int64_t others = 0;

  constexpr ProductDifference& operator+=(const ProductDifference& other) {
    square += other.square;
    difference += other.difference;
    others += other.others;
    return *this;
  }
};
ProductDifference difference_of_products(Context& ctx, const Tensor& x, const Tensor& y);

}  // namespace braid::cuda
