#include "kernels/cuda/gpu.h"

#include <cstdlib>
#include <exception>

#include "kernels/build_config.h"
#include "kernels/core/device_info.h"
#include "kernels/core/memory.h"
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/queues.h"

namespace braid {
namespace cuda {

std::string why_no_gpu();  // below; Context asks it too

namespace {

// Streams share 8 queues of the GPU unless the driver is told of more before it starts, and what waits for other ranks
// at the head of a queue would hold up what others wait for.
void want_a_queue_per_stream() { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0); }

// Errors after which the context answers nothing else any more.
bool has_lost_device(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorECCUncorrectable: return true;
    default: return false;
  }
}

// Ends the program through its terminate handler, with this error, and without running a destructor: those of device
// memory and streams would call the device again.
[[noreturn]] void end_with(const EnvironmentError& error) {
  try {
    throw error;
  } catch (const EnvironmentError&) {
    std::terminate();
  }
}

}  // namespace

void check_cuda(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  const std::string message = concat(call, ": ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")");
  if (result == cudaErrorMemoryAllocation) throw OutOfMemoryError(message);
  if (has_lost_device(result)) end_with(EnvironmentError(message));
  throw EnvironmentError(message);
}

void check_cublas(cublasStatus_t result, const char* call) {
  check<EnvironmentError>(result == CUBLAS_STATUS_SUCCESS, call, ": ", cublasLtGetStatusString(result));
}

void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

Gpu::Gpu(int index) : device_index(index) {
  want_a_queue_per_stream();
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  check<EnvironmentError>(found == cudaSuccess && count > 0, "no NVIDIA GPU can be used: ", why_no_gpu());
  check<EnvironmentError>(index < count, "GPU ", index, " was asked for, but this process sees ", count);
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  num_sms = properties.multiProcessorCount;
  compute_capability = properties.major * 10 + properties.minor;
  most_shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  check<EnvironmentError>(compute_capability >= 80, "GPU ", index, " (", properties.name, ") has compute capability ",
                          properties.major, '.', properties.minor, "; Braid needs 8.0 or newer");
  check<EnvironmentError>(has_code_for(kCudaArchitectures, compute_capability), "GPU ", index, " (", properties.name,
                          ") has compute capability ", properties.major, '.', properties.minor,
                          ", and this build holds code for ", kCudaArchitectures,
                          " alone; build with CMAKE_CUDA_ARCHITECTURES=", compute_capability);
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  reached = open_event();
  check_cublas(cublasLtCreate(&cublas), "cublasLtCreate");
  cublas_workspace_bytes = kCublasWorkspaceBytes;
  cublas_workspace = allocate_memory(Device::kCuda, cublas_workspace_bytes);
  check<OutOfMemoryError>(cublas_workspace != nullptr, "GPU ", index, ": no memory left for cuBLAS");
}

Gpu::Gpu(const GpuModel& model)
    : num_sms(model.num_sms),
      compute_capability(model.compute_capability),
      most_shared_bytes(model.most_shared_bytes) {}

Gpu::~Gpu() {
  if (cublas) cublasLtDestroy(cublas);
  if (reached) cudaEventDestroy(reached);
  if (stream) cudaStreamDestroy(stream);
}

std::shared_ptr<Gpu> open_gpu(int device_index) { return std::make_shared<Gpu>(device_index); }

std::shared_ptr<Gpu> open_second(Gpu& first) {
  auto second = open_gpu(first.device_index);
  second->health_checks = first.health_checks;
  return second;
}

std::shared_ptr<Gpu> describe_gpu(const GpuModel& model) { return std::make_shared<Gpu>(model); }

void wait_for(Gpu& gpu, Gpu& other) {
  record(other, other.reached);
  hold(gpu, other.reached);
}

void synchronize(Gpu& gpu) {
  if (!gpu.health_checks->empty()) {
    for (int64_t turn = 0; cudaStreamQuery(gpu.stream) == cudaErrorNotReady; ++turn) {
      if (turn % 1024 == 0)
        for (const auto& health_check : *gpu.health_checks) health_check();
    }
  }
  check_cuda(cudaStreamSynchronize(gpu.stream), "cudaStreamSynchronize");
}

int num_gpus() {
  want_a_queue_per_stream();
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string why_no_gpu() {
  int count = 0, driver = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  if (result == cudaSuccess || result == cudaErrorNoDevice) return "there is none that this process may use";
  if (result != cudaErrorInsufficientDriver) return cudaGetErrorString(result);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver is installed";
  const auto version = [](int number) { return concat(number / 1000, '.', number % 1000 / 10); };
  return concat("the NVIDIA driver knows CUDA ", version(driver), ", and this program needs ", version(CUDART_VERSION));
}

void* allocate(int64_t bytes) {
  void* block = nullptr;
  const cudaError_t result = cudaMalloc(&block, static_cast<size_t>(bytes));
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is handled here
    return nullptr;
  }
  check_cuda(result, "cudaMalloc");
  return block;
}

void release(void* block) { cudaFree(block); }

void zero(void* block, int64_t bytes) {
  check_cuda(cudaMemset(block, 0, static_cast<size_t>(bytes)), "cudaMemset");
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

GpuMemory gpu_memory() {
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  return {static_cast<int64_t>(free_bytes), static_cast<int64_t>(total_bytes)};
}

}  // namespace cuda
}  // namespace braid
