#pragma once

#include <memory>
#include <string>
#include <utility>

#include "parallel/context_group.h"

namespace braid {

struct ParallelConfig {
  int64_t expert = 1;            // EP: ranks that share the experts of a layer between them
  int64_t context = 1;           // ranks that share every row between them
  double max_rows_factor = 1.5;  // expert rows that a rank holds at a time, by their mean; 0: all there can be
  int64_t micro_batches_in_flight = 1;
  int64_t bucket_elements = int64_t{32} << 20;  // gradients are reduced in parts of at least so many; 0: all at once

  template <class Visit>
  void visit(Visit&& key) {
    key("expert", expert, "ranks that share the experts of every layer (divides the ranks and num_experts)");
    key("context", context, "ranks that share every row between them (divides the ranks)");
    key("max_rows_factor", max_rows_factor,
        "expert rows that a rank holds at a time, as a multiple of the mean; more take rounds; 0 = all there can be");
    key("micro_batches_in_flight", micro_batches_in_flight,
        "micro-batches computed side by side, 1 or 2: with two, one computes while the other's rows travel "
        "between ranks; takes the activations of both, changes no bit");
    key("bucket_elements", bucket_elements,
        "gradients are reduced in parts of at least so many elements, while backward goes on; 0 = all at once");
  }
};

// How the ranks are arranged. An expert group is EP consecutive ranks and holds every expert once; an expert-data group
// is the ranks that hold copies of the same experts. A context group is CP consecutive ranks that share rows: to data
// it is one rank, to weights, experts and losses each of its ranks is one with tokens of its own.
class ProcessMesh {
 public:
  // Throws ConfigError, with the numbers, if `expert` does not divide the world or the number of experts, or `context`
  // not the world.
  ProcessMesh(std::unique_ptr<Communicator> world, int64_t expert, int64_t num_experts, int64_t context = 1);

  // Groups made elsewhere: `braid plan` arranges groups that have sizes but no members.
  ProcessMesh(std::unique_ptr<Communicator> world, std::unique_ptr<Communicator> expert,
              std::unique_ptr<Communicator> expert_data, std::unique_ptr<Communicator> context = nullptr)
      : world_(std::move(world)), expert_(std::move(expert)), expert_data_(std::move(expert_data)) {
    share_rows(std::move(context));
  }

  Communicator& world() const { return *world_; }
  Communicator& expert() const { return *expert_; }
  Communicator& expert_data() const { return *expert_data_; }
  // Null where rows are whole.
  const ContextGroup* context() const { return context_.get(); }
  RowShare share() const { return context_ ? context_->share() : RowShare(); }
  // Ranks with rows of their own, and which of them this rank belongs to.
  int num_data_ranks() const { return size() / static_cast<int>(share().count); }
  int data_rank() const { return rank() / static_cast<int>(share().count); }
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }

 private:
  void share_rows(std::unique_ptr<Communicator> ranks);

  std::unique_ptr<Communicator> world_, expert_, expert_data_, context_ranks_;
  std::unique_ptr<ContextGroup> context_;
};

}  // namespace braid
