#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/core/arena.h"
#include "model/mtp_block.h"
#include "model/parameters.h"
#include "parallel/process_mesh.h"

namespace braid {

struct ModelParams {    // weights; the same struct holds gradients
  Tensor embed_tokens;  // (V, C)
  std::vector<DecoderLayerParams> layers;
  Tensor norm;                      // (C)
  Tensor lm_head;                   // (V, C)
  std::vector<MtpBlockParams> mtp;  // none or one

  ModelParams(const ModelConfig& c, const MtpConfig& mtp);
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const int64_t V = c.vocab_size, C = c.hidden_size;
    tensor("model.embed_tokens.weight", embed_tokens, {V, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    for (size_t i = 0; i < layers.size(); ++i)
      layers[i].visit(c, with_prefix("model.layers." + std::to_string(i) + ".", tensor));
    tensor("model.norm.weight", norm, {C}, Owner::kEveryRank, Init::kZero, Decay::kNorm);
    tensor("lm_head.weight", lm_head, {V, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    for (auto& block : mtp) block.visit(c, with_prefix("mtp.", tensor));
  }
};

// The parameter table: every tensor of the model in a fixed order, without memory.
std::vector<Parameter> parameter_table(const ModelConfig& c, const MtpConfig& mtp);
// A line per parameter: name, shape, owner, init, decay; then the totals.
std::string format_parameter_table(const std::vector<Parameter>& table);

// How a parameter is stored beside bf16 activations: matrices like them, everything small (norms, biases, decays, the
// convolution) in fp32. Beside fp32 or fp64 all are alike.
enum class Storage { kActivation, kWide };
Storage storage_of(const Parameter& parameter);

// Where the shards of a buffer may begin: anywhere, or between matrices, of which an expert's is one.
enum class Cut { kAnywhere, kBetweenMatrices };
// Chooses parameters whose matrices (last two axes) lie in one shard each.
using MatrixFilter = bool (*)(const Parameter&);

// Parameters of one owner, storage and cut lie in flat buffers, so that gradients are reduced and optimizer states
// sharded without looking at names. A buffer is padded to equal shards for the ranks that share it, and ends behind the
// layer that fills it to `bucket_elements`: its gradients can be reduced while the backward pass still computes those
// of earlier layers. Where shards begin between matrices, dense ones are spread so that the fullest shard is small
// (the largest matrix first, each to the emptiest shard), experts' lie one after the other in buffers of one matrix
// size, and a buffer also waits until no more than a fifth of it is padding.
struct FlatParameter {
  Parameter parameter;
  int64_t offset;        // of its first local element in the flat buffer
  int64_t local_numel;   // elements on this rank
  int64_t global_first;  // index in the whole tensor of its first local element
};
struct FlatGroup {
  Owner owner;
  Storage storage;
  Cut cut = Cut::kAnywhere;
  int64_t expert_numel = 0;  // elements of an expert's matrix, where cut between them
  std::vector<FlatParameter> parameters;
  int64_t shard_numel = 0;  // elements per rank of the group that shares the buffer
  int64_t numel = 0;        // of the buffer, padding included

  std::string name;            // "dense", "small", "matrices", "expert", or "dense.1" …
  int64_t complete_after = 0;  // the gradients are, once the backward pass has left this layer (see layer_of)
  DType weight_dtype(DType activation) const {
    return storage == Storage::kActivation ? activation : wide_dtype(activation);
  }
};

// The layer of the backward pass that completes a parameter's gradient: the number of layers for what lies behind them
// (final norm, head, MTP block), -1 for the embedding.
int64_t layer_of(const Parameter& parameter, int64_t num_layers);

class ParameterLayout {
 public:
  // expert_ranks: size of an expert group; this rank is expert_rank in it. dense_shards, expert_shards: ranks that
  // share the optimizer state of each group (world, expert-data group). bucket_elements: see FlatGroup; 0: no limit.
  // whole: the parameters that are cut between matrices; null: none.
  ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, int64_t expert_ranks, int64_t expert_rank,
                  int64_t dense_shards, int64_t expert_shards, int64_t bucket_elements = 0,
                  MatrixFilter whole = nullptr);
  ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, const ProcessMesh& mesh, int64_t bucket_elements = 0,
                  MatrixFilter whole = nullptr);

  const std::vector<FlatGroup>& groups() const { return groups_; }
  // Points every tensor of `params` into the flat buffers, one per group.
  void bind(ModelParams& params, const std::vector<Tensor>& flat) const;
  // Names a buffer per group: weights in their dtypes beside `activation`, or gradients, which are wide, or those of
  // experts in the dtype given.
  void plan_weights(Planner& planner, std::vector<Tensor>& flat, DType activation) const;
  void plan_gradients(Planner& planner, std::vector<Tensor>& flat, DType activation,
                      std::optional<DType> of_experts = {}) const;

 private:
  FlatGroup& group_for(const Parameter& parameter, Cut cut, int64_t bucket_elements);
  int64_t shards_of(const FlatGroup& group) const {
    return group.owner == Owner::kExpertRank ? expert_shards_ : dense_shards_;
  }

  const ModelConfig config_;
  int64_t expert_ranks_, dense_shards_, expert_shards_;
  std::vector<FlatGroup> groups_;
};

}  // namespace braid
