#include "kernels/core/arena.h"

#include <algorithm>

#include "kernels/core/memory.h"

namespace braid {

Planner::Scope::Scope(Planner& planner, const std::string& prefix)
    : planner_(planner), outer_length_(planner.prefix_.size()) {
  planner_.prefix_ += prefix;
}

Planner::Scope::~Scope() { planner_.prefix_.resize(outer_length_); }

void Planner::add(const std::string& name, Tensor& slot, Shape shape, DType dtype) {
  slot = Tensor(nullptr, dtype, shape);
  entries_.push_back({prefix_ + name, &slot, own_bytes_, slot.bytes()});
  own_bytes_ += round_up(slot.bytes(), kMemoryAlignBytes);
}

void Planner::add_shared(const std::string& name, Tensor& slot, Shape shape, DType dtype) {
  slot = Tensor(nullptr, dtype, shape);
  entries_.push_back({prefix_ + name, &slot, shared_bytes_, slot.bytes(), true});
  shared_bytes_ += round_up(slot.bytes(), kMemoryAlignBytes);
  most_shared_bytes_ = std::max(most_shared_bytes_, shared_bytes_);
}

void Planner::begin_other_shared() {
  for (Entry& entry : entries_) {
    if (!entry.shared) continue;
    entry.offset_bytes += own_bytes_;
    entry.shared = false;
  }
  own_bytes_ += most_shared_bytes_;
  shared_bytes_ = most_shared_bytes_ = 0;
}

Arena::Arena(const std::string& purpose, Planner& plan, Device device) : bytes_(plan.total_bytes()) {
  if (bytes_ == 0) return;
  block_ = allocate_memory(device, bytes_);
  if (!block_) {
    auto entries = plan.entries();
    const auto shown = std::min<size_t>(3, entries.size());
    std::partial_sort(entries.begin(), entries.begin() + shown, entries.end(),
                      [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    std::string largest;
    for (size_t i = 0; i < shown; ++i) largest += concat(i ? ", " : "", entries[i].name, " ", entries[i].bytes);
    throw OutOfMemoryError(concat("cannot allocate ", bytes_, " bytes for ", purpose, "; the largest: ", largest));
  }
  zero_memory(device, block_.get(), bytes_);
  for (const auto& entry : plan.entries())
    *entry.slot = Tensor(block_.get() + plan.offset_of(entry), entry.slot->dtype(), entry.slot->shape(), device);
}

}  // namespace braid
