#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <functional>
#include <list>

#include "kernels/core/context.h"
#include "kernels/core/device_info.h"

namespace braid::cuda {

// Throw EnvironmentError (OutOfMemoryError where that is the cause) naming the call that failed.
void check_cuda(cudaError_t result, const char* call);
void check_cublas(cublasStatus_t result, const char* call);
// After every launch: errors of the launch itself. Errors of the kernel show at the next call that waits.
void check_launch(const char* kernel);

// What a context on a GPU holds.
struct Gpu {
  explicit Gpu(int device_index);
  explicit Gpu(const GpuModel& model);  // of one that need not be there, to count with
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  bool is_there() const { return device_index >= 0; }

  int device_index = -1;
  int num_sms = 0;
  int compute_capability = 0;  // 90 = 9.0
  int most_shared_bytes = 0;   // shared memory that a block may ask for
  cudaStream_t stream = nullptr;
  cudaEvent_t reached = nullptr;  // recorded when another stream shall wait for this one
  cublasLtHandle_t cublas = nullptr;
  std::shared_ptr<std::byte> cublas_workspace;
  int64_t cublas_workspace_bytes = 0;
  // Called again and again while the host waits for a stream; one throws if what is waited for can never come. Who puts
  // one here takes it out before what it looks at is gone. A context and its second have the same.
  using HealthChecks = std::list<std::function<void()>>;
  std::shared_ptr<HealthChecks> health_checks = std::make_shared<HealthChecks>();
};

inline cudaStream_t stream_of(const Context& ctx) { return ctx.gpu().stream; }

}  // namespace braid::cuda
