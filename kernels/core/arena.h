#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/tensor.h"

namespace braid {

// Collects the tensors that something needs, before any memory is taken. A slot gets its shape and dtype at once and
// its memory when an Arena commits the plan, so the same code serves training and `braid plan`.
class Planner {
 public:
  struct Entry {
    std::string name;
    Tensor* slot;
    int64_t offset_bytes;
    int64_t bytes;
  };

  // Prefixes the names of what is added while it lives: "layers.3." + "mixer.".
  class Scope {
   public:
    Scope(Planner& planner, const std::string& prefix);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Planner& planner_;
    size_t outer_length_;
  };

  // `slot` must stay where it is until the plan is committed.
  void add(const std::string& name, Tensor& slot, Shape shape, DType dtype);

  const std::vector<Entry>& entries() const { return entries_; }
  int64_t total_bytes() const { return total_bytes_; }

 private:
  std::vector<Entry> entries_;
  std::string prefix_;
  int64_t total_bytes_ = 0;
};

// One allocation, zeroed, that backs every tensor of a plan for as long as it lives.
class Arena {
 public:
  Arena() = default;
  // Throws OutOfMemoryError with the bytes asked for and the largest entries of the plan.
  Arena(const std::string& purpose, Planner& plan, Device device = Device::kCpu);
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<std::byte> block_;
  int64_t bytes_ = 0;
};

}  // namespace braid
