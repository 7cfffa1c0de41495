#pragma once

#include <cublasLt.h>

#include <atomic>

// cuBLASLt, loaded by the first product on a GPU. Linked, its half gigabyte costs every start of every program 80 ms of
// a core, also of those that never see a GPU. Calls read as with <cublasLt.h>
// alone: inside braid::cuda the names are these.
namespace braid::cuda {

// Errors: EnvironmentError if there is no such library, or no such function in it.
void* cublas_lt_address(const char* function);

template <class Signature>
class CublasLtFunction;
template <class Result, class... Arguments>
class CublasLtFunction<Result(Arguments...)> {
 public:
  explicit constexpr CublasLtFunction(const char* name) : name_(name) {}
  Result operator()(Arguments... arguments) const {
    auto function = function_.load(std::memory_order_relaxed);
    if (!function) {
      function = reinterpret_cast<Result (*)(Arguments...)>(cublas_lt_address(name_));
      function_.store(function, std::memory_order_relaxed);
    }
    return function(arguments...);
  }

 private:
  const char* name_;
  mutable std::atomic<Result (*)(Arguments...)> function_ = nullptr;
};

#define BRAID_CUBLAS_LT(name) inline constinit const CublasLtFunction<decltype(::name)> name(#name)
BRAID_CUBLAS_LT(cublasLtCreate);
BRAID_CUBLAS_LT(cublasLtDestroy);
BRAID_CUBLAS_LT(cublasLtGetStatusString);
BRAID_CUBLAS_LT(cublasLtGetVersion);
BRAID_CUBLAS_LT(cublasLtMatmul);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoCapGetAttribute);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoCheck);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoConfigGetAttribute);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoConfigSetAttribute);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoGetHeuristic);
BRAID_CUBLAS_LT(cublasLtMatmulAlgoInit);
BRAID_CUBLAS_LT(cublasLtMatmulDescCreate);
BRAID_CUBLAS_LT(cublasLtMatmulDescDestroy);
BRAID_CUBLAS_LT(cublasLtMatmulDescSetAttribute);
BRAID_CUBLAS_LT(cublasLtMatmulPreferenceCreate);
BRAID_CUBLAS_LT(cublasLtMatmulPreferenceDestroy);
BRAID_CUBLAS_LT(cublasLtMatmulPreferenceSetAttribute);
BRAID_CUBLAS_LT(cublasLtMatrixLayoutCreate);
BRAID_CUBLAS_LT(cublasLtMatrixLayoutDestroy);
#undef BRAID_CUBLAS_LT

}  // namespace braid::cuda
