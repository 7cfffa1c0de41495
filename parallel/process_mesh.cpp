#include "parallel/process_mesh.h"

#include <numeric>
#include <utility>

namespace braid {
namespace {

void check_expert_size(int64_t expert, int64_t num_ranks, int64_t num_experts) {
  if (expert >= 1 && num_ranks % expert == 0 && num_experts % expert == 0) return;
  std::string valid;
  for (int64_t divisor = 1; divisor <= num_ranks; ++divisor)
    if (std::gcd(num_ranks, num_experts) % divisor == 0) valid += concat(valid.empty() ? "" : ", ", divisor);
  throw ConfigError(concat("parallel.expert is ", expert, ", but must divide both the ", num_ranks, " ranks and the ",
                           num_experts, " experts; valid here: ", valid));
}

}  // namespace

ProcessMesh::ProcessMesh(std::unique_ptr<Communicator> world, int64_t expert, int64_t num_experts, int64_t context)
    : world_(std::move(world)) {
  check_expert_size(expert, world_->size(), num_experts);
  expert_ = world_->split(static_cast<int>(world_->rank() / expert));
  expert_data_ = world_->split(static_cast<int>(world_->rank() % expert));
  check<ConfigError>(context >= 1 && world_->size() % context == 0, "parallel.context is ", context,
                     ", but must divide the ", world_->size(), " ranks");
  if (context > 1) share_rows(world_->split(static_cast<int>(world_->rank() / context)));
}

void ProcessMesh::share_rows(std::unique_ptr<Communicator> ranks) {
  if (!ranks || ranks->size() == 1) return;
  context_ranks_ = std::move(ranks);
  context_ = std::make_unique<ContextGroup>(*context_ranks_);
}

}  // namespace braid
