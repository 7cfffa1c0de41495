#include "trainer/replica_check.h"

#include <memory>

#include "kernels/core/copy.h"
#include "kernels/core/memory.h"
#include "kernels/core/sha256.h"
#include "parallel/rank_text.h"

namespace braid {
namespace {

struct Digest {
  std::string tensor, sha256;
};

std::string digest_of(Context& ctx, const Tensor& tensor) {
  if (tensor.device() == Device::kCpu)
    return sha256({static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes())});
  const std::shared_ptr<std::byte> memory = allocate_memory(Device::kCpu, tensor.bytes());
  check<OutOfMemoryError>(memory != nullptr, "no host memory left for ", tensor.bytes(), " bytes of weights");
  copy(ctx, Tensor(memory.get(), tensor.dtype(), tensor.shape()), tensor);
  return sha256({reinterpret_cast<const char*>(memory.get()), static_cast<size_t>(tensor.bytes())});
}

// Empty, or the first tensor that is not the same everywhere, and where. The same text on every rank of the group.
std::string difference(Context& ctx, Communicator& group, const std::vector<Digest>& digests,
                       const std::vector<std::string>& names_of_ranks) {
  std::string all;
  for (const Digest& d : digests) all += d.sha256;
  const auto summaries = gather_text(ctx, group, sha256(all));
  bool same = true;
  for (const std::string& summary : summaries) same &= summary == summaries[0];
  if (same) return "";
  const auto every = gather_text(ctx, group, all);
  for (size_t i = 0; i < digests.size(); ++i) {
    const size_t size = digests[i].sha256.size(), at = i * size;
    std::string ranks;
    for (size_t r = 1; r < every.size(); ++r)
      if (every[r].compare(at, size, every[0], at, size) != 0) ranks += (ranks.empty() ? "" : ", ") + names_of_ranks[r];
    if (!ranks.empty())
      return concat(digests[i].tensor, " on rank ", ranks, " is not what it is on rank ", names_of_ranks[0]);
  }
  return "";
}

}  // namespace

void check_replicas(Context& ctx, const ProcessMesh& mesh, const ModelConfig& config, ModelParams& weights) {
  Context cpu = Context::cpu();
  std::vector<Digest> dense, experts;
  weights.visit(config, [&](const std::string& name, Tensor& tensor, const Shape&, Owner owner, Init, Decay,
                            const PackedRows& = {}) {
    (owner == Owner::kEveryRank ? dense : experts).push_back({name, digest_of(ctx, tensor)});
  });
  const std::string own = std::to_string(mesh.rank());
  const std::string of_dense = difference(cpu, mesh.world(), dense, gather_text(cpu, mesh.world(), own));
  const std::string of_experts =
      difference(cpu, mesh.expert_data(), experts, gather_text(cpu, mesh.expert_data(), own));
  const std::string found = of_dense.empty() ? of_experts : of_dense;
  for (const std::string& text : gather_text(cpu, mesh.world(), found))
    if (!text.empty())
      throw_on_every_rank(
          NumericsError("copies of weights differ: " + text +
                        "; a memory or a device is at fault: go on from the last checkpoint without that host"));
}

}  // namespace braid
