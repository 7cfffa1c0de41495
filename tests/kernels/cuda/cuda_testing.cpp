#include "tests/kernels/cuda/cuda_testing.h"

#include <memory>

#include "kernels/cuda/gpu.h"

namespace braid::testing {
namespace {

std::vector<std::shared_ptr<std::byte>>& gpu_memory() {
  static auto* blocks = new std::vector<std::shared_ptr<std::byte>>;  // never freed: the driver may be gone before us
  return *blocks;
}

Tensor allocate_on_gpu(Shape shape, DType dtype) {
  auto block = allocate_memory(Device::kCuda, std::max<int64_t>(1, shape.numel() * size_of(dtype)));
  check<OutOfMemoryError>(block != nullptr, "no GPU memory for a test");
  gpu_memory().push_back(block);
  return Tensor(block.get(), dtype, shape, Device::kCuda);
}

}  // namespace

Context* gpu_context() {
  static Context* context = []() -> Context* {
    try {
      return new Context(Context::gpu(0));
    } catch (const EnvironmentError&) {
      return nullptr;
    }
  }();
  return context;
}

PortableKernels::PortableKernels(Context& gpu) : gpu_(gpu), compute_capability_(gpu.gpu().compute_capability) {
  gpu.gpu().compute_capability = 80;
}
PortableKernels::~PortableKernels() { gpu_.gpu().compute_capability = compute_capability_; }

Tensor CudaTest::on_gpu(Shape shape, DType dtype) { return to_gpu(poisoned(shape, dtype)); }

Tensor CudaTest::to_gpu(const Tensor& host, DType dtype) {
  Tensor source = host;
  if (host.dtype() != dtype) {
    source = allocate(host.shape(), dtype);
    convert(source, host);
  }
  Tensor device = allocate_on_gpu(host.shape(), dtype);
  copy(*gpu_context(), device, source);
  return device;
}

Segments CudaTest::to_gpu(Segments segments) {
  Segments::Tables tables;
  Planner plan;
  Segments::plan_tables(plan, tables, segments.num_tokens());
  for (const auto& entry : plan.entries()) *entry.slot = allocate_on_gpu(entry.slot->shape(), entry.slot->dtype());
  segments.upload(*gpu_context(), tables);
  return segments;
}

Tensor CudaTest::to_cpu(const Tensor& device) {
  Tensor host = allocate(device.shape(), device.dtype());
  copy(*gpu_context(), host, device);
  if (!is_float(device.dtype()) || device.dtype() == DType::kF64) return host;
  Tensor wide = allocate(device.shape(), DType::kF64);
  convert(wide, host);
  return wide;
}

void CudaTest::expect_matches(const Tensor& actual, const Tensor& expected, const char* what, Tolerance tolerance) {
  const Tensor got = to_cpu(actual);
  ASSERT_EQ(got.shape(), expected.shape()) << what;
  if (!is_float(got.dtype())) return expect_same_bits(got, expected, what);
  if (expected.numel() == 0) return;
  const auto count = double(expected.numel()), rms = std::sqrt(dot(expected, expected) / count);
  EXPECT_LE(relative_rms(got, expected), tolerance.relative_rms * (1 + 1 / std::sqrt(count))) << what;
  double worst = -1;
  int64_t worst_at = 0;
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const double excess =
        std::fabs(value_at(got, i) - value_at(expected, i)) - tolerance.of_element * std::fabs(value_at(expected, i));
    if (!(excess <= worst)) {  // a NaN is the worst
      worst = excess;
      worst_at = i;
    }
  }
  EXPECT_LE(worst, tolerance.worst * rms) << what << ": element " << worst_at << " is " << value_at(got, worst_at)
                                          << ", expected " << value_at(expected, worst_at) << " (RMS " << rms << ")";
}

void CudaTest::expect_same_bits_every_time(const std::function<std::vector<Tensor>()>& body, int repeats) {
  auto bytes_of = [&] {
    std::vector<Tensor> host;
    for (const Tensor& t : body()) {
      host.push_back(allocate(t.shape(), t.dtype()));
      copy(*gpu_context(), host.back(), t);
    }
    return host;
  };
  const std::vector<Tensor> first = bytes_of();
  for (int i = 1; i < repeats; ++i) {
    const std::vector<Tensor> again = bytes_of();
    for (size_t t = 0; t < first.size(); ++t)
      expect_same_bits(again[t], first[t], ("run " + std::to_string(i) + ", tensor " + std::to_string(t)).c_str());
  }
}

}  // namespace braid::testing
