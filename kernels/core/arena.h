#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/tensor.h"

namespace braid {

// How a number about every micro-batch becomes one about the step.
enum class NumberKind {
  kTokenMean,       // a sum over valid tokens; their mean
  kRootMeanSquare,  // a sum of squares over `elements` of each micro-batch; the root of their mean
  kLargest,
};

// Collects the tensors that something needs, before any memory is taken. A slot gets its shape and dtype at once and
// its memory when an Arena commits the plan, so the same code serves training and `braid plan`.
class Planner {
 public:
  struct Entry {
    std::string name;
    Tensor* slot;
    int64_t offset_bytes;  // of a shared one: from where what is shared begins
    int64_t bytes;
    bool shared = false;
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

  // The same in memory that others get too: what is added between two calls of begin_shared lies side by side, and over
  // what was added so before. Behind everything else there is room for the most that is added at a time.
  void begin_shared() { shared_bytes_ = 0; }
  void add_shared(const std::string& name, Tensor& slot, Shape shape, DType dtype);
  // What is shared from now on gets memory of its own: of a computation that runs beside those so far.
  void begin_other_shared();

  // A number that a layer can tell about every micro-batch. Whoever wants it makes `slot` a (1) F64 tensor, which the
  // layer's forward overwrites; else the slot stays undefined, and forward leaves the number out.
  struct Offer {
    std::string scope;  // "layers.3.mlp."
    std::string name;   // "moe/router_entropy"
    Tensor* slot;
    NumberKind kind;
    int64_t elements;
  };
  void offer(const std::string& name, Tensor& slot, NumberKind kind, int64_t elements = 0) {
    offers_.push_back({prefix_, name, &slot, kind, elements});
  }

  const std::vector<Entry>& entries() const { return entries_; }
  std::vector<Offer> take_offers() { return std::exchange(offers_, {}); }
  int64_t total_bytes() const { return own_bytes_ + most_shared_bytes_; }
  int64_t shared_bytes() const { return most_shared_bytes_; }  // of them
  int64_t offset_of(const Entry& entry) const { return entry.offset_bytes + (entry.shared ? own_bytes_ : 0); }

 private:
  std::vector<Entry> entries_;
  std::vector<Offer> offers_;
  std::string prefix_;
  int64_t own_bytes_ = 0, shared_bytes_ = 0, most_shared_bytes_ = 0;
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
