#include "kernels/core/context.h"

#include <algorithm>

#include "kernels/build_config.h"
#include "kernels/core/memory.h"
#include "kernels/core/queues.h"

namespace braid {
namespace {
constexpr int64_t kMinBlockBytes = int64_t{1} << 20;
}  // namespace

namespace cuda {
std::shared_ptr<Gpu> open_gpu(int device_index);
std::shared_ptr<Gpu> open_second(Gpu& first);
std::shared_ptr<Gpu> describe_gpu(const GpuModel& model);
void synchronize(Gpu& gpu);
void wait_for(Gpu& gpu, Gpu& other);
int num_gpus();
std::string why_no_gpu();
}  // namespace cuda

Context Context::gpu(int device_index) {
  Context ctx;
  if constexpr (kWithCuda) {
    ctx.gpu_ = cuda::open_gpu(device_index);
    return ctx;
  }
  throw EnvironmentError("this build of braid has no CUDA operators");
}

int Context::num_gpus() {
  if constexpr (kWithCuda) return cuda::num_gpus();
  return 0;
}

std::string Context::why_no_gpu() {
  if constexpr (kWithCuda) return cuda::why_no_gpu();
  return "this build of braid has no CUDA operators";
}

void Context::synchronize() const {
  if constexpr (kWithCuda) {
    if (on_cuda()) cuda::synchronize(*gpu_);
  }
}

Context Context::counter() const {
  Context ctx;
  ctx.gpu_ = gpu_;
  ctx.counts_only_ = true;
  return ctx;
}

Context Context::counter_on(const GpuModel& gpu) {
  if constexpr (kWithCuda) {
    Context ctx;
    ctx.gpu_ = cuda::describe_gpu(gpu);
    ctx.counts_only_ = true;
    return ctx;
  }
  throw EnvironmentError("this build of braid has no CUDA operators, which alone know what scratch they take");
}

Context& Context::side() {
  if (counts_only_) return *this;
  if constexpr (kWithCuda) {
    if (on_cuda()) {
      if (!side_) side_ = std::make_shared<Context>(open_queue(*this));
      return *side_;
    }
  }
  return *this;
}

Context& Context::second() {
  if (second_) return *second_;
  second_ = std::make_shared<Context>(counts_only_ ? counter() : Context::cpu());
  if constexpr (kWithCuda) {
    if (on_cuda() && !counts_only_) second_->gpu_ = cuda::open_second(*gpu_);
  }
  return *second_;
}

void Context::wait_for(Context& other) {
  if (counts_only_ || &other == this) return;
  if constexpr (kWithCuda) {
    if (on_cuda()) cuda::wait_for(*gpu_, *other.gpu_);
  }
}

void Context::reserve_scratch(int64_t bytes) {
  assert(in_use_bytes_ == 0);
  if (!blocks_.empty() && blocks_.front().bytes >= bytes) return;
  blocks_.clear();  // before a larger block is taken
  add_block(round_up(bytes, kMemoryAlignBytes));
}

void Context::add_block(int64_t bytes) {
  Block block;
  block.bytes = bytes;
  block.memory = allocate_memory(device(), bytes);
  check<OutOfMemoryError>(block.memory != nullptr, "cannot allocate ", bytes, " bytes of scratch");
  blocks_.push_back(std::move(block));
}

int64_t Context::scratch_reserved_bytes() const {
  int64_t sum = 0;
  for (const Block& block : blocks_) sum += block.bytes;
  return sum + (second_ ? second_->scratch_reserved_bytes() : 0);
}

std::byte* Context::push(int64_t bytes) {
  bytes = round_up(bytes, kMemoryAlignBytes);
  if (counts_only_) {
    in_use_bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, in_use_bytes_);
    return nullptr;
  }
  while (top_ < blocks_.size() && blocks_[top_].used_bytes + bytes > blocks_[top_].bytes) {
    // Everything above the top is free: a block that is too small for this request is replaced by a larger one.
    if (blocks_[top_].used_bytes == 0) {
      blocks_.resize(top_);
      break;
    }
    ++top_;
  }
  if (top_ == blocks_.size()) add_block(std::max({bytes, kMinBlockBytes, 2 * peak_bytes_}));
  Block& block = blocks_[top_];
  std::byte* result = block.memory.get() + block.used_bytes;
  block.used_bytes += bytes;
  in_use_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, in_use_bytes_);
  return result;
}

Scratch::Scratch(Context& ctx)
    : ctx_(ctx),
      top_(ctx.top_),
      used_bytes_(ctx.top_ < ctx.blocks_.size() ? ctx.blocks_[ctx.top_].used_bytes : 0),
      in_use_bytes_(ctx.in_use_bytes_) {}

Scratch::~Scratch() {
  for (size_t i = top_ + 1; i < ctx_.blocks_.size(); ++i) ctx_.blocks_[i].used_bytes = 0;
  if (top_ < ctx_.blocks_.size()) ctx_.blocks_[top_].used_bytes = used_bytes_;
  ctx_.top_ = top_;
  ctx_.in_use_bytes_ = in_use_bytes_;
}

Tensor Scratch::tensor(Shape shape, DType dtype) {
  return Tensor(ctx_.push(shape.numel() * size_of(dtype)), dtype, shape, ctx_.device());
}

}  // namespace braid
