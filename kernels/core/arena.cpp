#include "kernels/core/arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace braid {
namespace {
constexpr int64_t kAlignBytes = 64;  // a cache line; also the widest vector load
}

Planner::Scope::Scope(Planner& planner, const std::string& prefix)
    : planner_(planner), outer_length_(planner.prefix_.size()) {
  planner_.prefix_ += prefix;
}

Planner::Scope::~Scope() { planner_.prefix_.resize(outer_length_); }

void Planner::add(const std::string& name, Tensor& slot, Shape shape, DType dtype) {
  slot = Tensor(nullptr, dtype, shape);
  entries_.push_back({prefix_ + name, &slot, total_bytes_, slot.bytes()});
  total_bytes_ += (slot.bytes() + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
}

void Arena::Free::operator()(std::byte* block) const { std::free(block); }

Arena::Arena(const std::string& purpose, Planner& plan) : bytes_(plan.total_bytes()) {
  if (bytes_ == 0) return;
  block_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignBytes, bytes_)));
  if (!block_) {
    auto entries = plan.entries();
    const auto shown = std::min<size_t>(3, entries.size());
    std::partial_sort(entries.begin(), entries.begin() + shown, entries.end(),
                      [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    std::string largest;
    for (size_t i = 0; i < shown; ++i) largest += concat(i ? ", " : "", entries[i].name, " ", entries[i].bytes);
    throw OutOfMemoryError(concat("cannot allocate ", bytes_, " bytes for ", purpose, "; the largest: ", largest));
  }
  std::memset(block_.get(), 0, bytes_);
  for (const auto& entry : plan.entries())
    *entry.slot = Tensor(block_.get() + entry.offset_bytes, entry.slot->dtype(), entry.slot->shape());
}

}  // namespace braid
