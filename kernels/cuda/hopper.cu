#include "kernels/cuda/hopper.cuh"

#include <string_view>

#include "kernels/build_config.h"

namespace braid::cuda {
namespace {

// The driver's function, without linking to the driver: the program also starts where there is none.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
               "cudaGetDriverEntryPointByVersion");
    check<EnvironmentError>(found == cudaDriverEntryPointSuccess && function != nullptr,
                            "the driver does not know cuTensorMapEncodeTiled; it is older than CUDA 12");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

}  // namespace

CUtensorMap make_tensor_map(DType dtype, const void* data, int rank, const int64_t* size, const int64_t* stride,
                            const int* box) {
  constexpr int kMaxRank = 5;
  cuuint64_t sizes[kMaxRank], stride_bytes[kMaxRank];
  cuuint32_t boxes[kMaxRank], steps[kMaxRank];
  for (int i = 0; i < rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
    if (i > 0) stride_bytes[i - 1] = static_cast<cuuint64_t>(stride[i - 1] * size_of(dtype));
  }
  CUtensorMap map;
  const CUresult result = tensor_map_encoder()(
      &map, dtype == DType::kF32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, stride_bytes, boxes, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check<EnvironmentError>(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error ", int(result));
  return map;
}

bool has_hopper_kernels(const Context& ctx) {
  constexpr bool kBuilt = std::string_view(kCudaArchitectures).find("90a") != std::string_view::npos;
  return kBuilt && ctx.gpu().compute_capability == 90;
}

}  // namespace braid::cuda
