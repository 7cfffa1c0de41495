#include "model/parameter_layout.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

#include "kernels/core/memory.h"
#include "kernels/core/moment_codes.h"
#include "kernels/core/stream.h"

namespace braid {
namespace {

constexpr int64_t kParameterAlignment = 128;  // elements: every parameter starts at a multiple of 256 bytes in bf16
static_assert(kParameterAlignment % MomentCodes::kBlock == 0);

int64_t end_of(const FlatParameter& p) { return p.offset + p.local_numel; }

int64_t matrix_numel(const Parameter& p) { return p.shape[p.shape.rank() - 2] * p.shape[p.shape.rank() - 1]; }

// Shards begin anywhere.
void cut_evenly(FlatGroup& group, int64_t shards) {
  group.shard_numel = round_up(end_of(group.parameters.back()), shards * kParameterAlignment) / shards;
}

// Parameters and shards begin at a multiple of the matrices' size, so that no shard begins inside one.
void cut_between_experts(FlatGroup& group, int64_t shards) {
  const int64_t unit = std::lcm(group.expert_numel, kParameterAlignment);
  int64_t end = 0;
  for (FlatParameter& p : group.parameters) {
    p.offset = round_up(end, unit);
    end = end_of(p);
  }
  group.shard_numel = round_up(end, shards * unit) / shards;
}

// The largest matrix first, each to the emptiest shard.
void spread_matrices(FlatGroup& group, int64_t shards) {
  std::vector<FlatParameter*> by_size;
  for (FlatParameter& p : group.parameters) by_size.push_back(&p);
  std::stable_sort(by_size.begin(), by_size.end(), [](auto* a, auto* b) { return a->local_numel > b->local_numel; });
  std::vector<int64_t> used(static_cast<size_t>(shards)), shard_of(by_size.size());
  for (size_t i = 0; i < by_size.size(); ++i) {
    const auto emptiest = std::min_element(used.begin(), used.end());
    shard_of[i] = emptiest - used.begin();
    by_size[i]->offset = *emptiest;
    *emptiest = round_up(end_of(*by_size[i]), kParameterAlignment);
  }
  group.shard_numel = *std::max_element(used.begin(), used.end());
  for (size_t i = 0; i < by_size.size(); ++i) by_size[i]->offset += shard_of[i] * group.shard_numel;
}

}  // namespace

ModelParams::ModelParams(const ModelConfig& c, const MtpConfig& mtp_config) : mtp(mtp_config.on() ? 1 : 0) {
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.emplace_back(c.layer_type(i));
}

std::vector<Parameter> parameter_table(const ModelConfig& c, const MtpConfig& mtp) {
  std::vector<Parameter> table;
  ModelParams params(c, mtp);
  params.visit(c, [&](const std::string& name, Tensor&, Shape shape, Owner owner, Init init, Decay decay,
                      const PackedRows& packed = {}) {
    table.push_back({name, shape, owner, init, decay, packed});
  });
  return table;
}

std::string format_parameter_table(const std::vector<Parameter>& table) {
  size_t name_width = 0;
  for (const auto& p : table) name_width = std::max(name_width, p.name.size());
  Loud<std::ostringstream> out;
  auto cell = [&](const std::string& text, size_t width) {
    out << text << std::string(width > text.size() ? width - text.size() : 0, ' ') << "  ";
  };
  int64_t total = 0, expert = 0;
  for (const auto& p : table) {
    cell(p.name, name_width);
    cell(p.shape.to_string(), 20);
    cell(name_of_enum(p.owner), 11);
    cell(name_of_enum(p.init), 17);
    out << "decay " << name_of_enum(p.decay) << '\n';
    total += p.shape.numel();
    if (p.owner == Owner::kExpertRank) expert += p.shape.numel();
  }
  out << table.size() << " tensors, " << total << " parameters, " << expert << " of them in routed experts\n";
  return out.str();
}

int64_t layer_of(const Parameter& p, int64_t num_layers) {
  static const std::string kLayers = "model.layers.";
  if (p.name.starts_with(kLayers)) return std::stoll(p.name.substr(kLayers.size()));
  return p.name.starts_with("model.embed_tokens.") ? -1 : num_layers;
}

Storage storage_of(const Parameter& p) {
  return p.shape.rank() == 1 || p.init == Init::kConv ? Storage::kWide : Storage::kActivation;
}

ParameterLayout::ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, int64_t expert_ranks, int64_t expert_rank,
                                 int64_t dense_shards, int64_t expert_shards, int64_t bucket_elements,
                                 MatrixFilter whole)
    : config_(c), expert_ranks_(expert_ranks), dense_shards_(dense_shards), expert_shards_(expert_shards) {
  for (const Parameter& p : parameter_table(c, mtp)) {
    const bool sharded = p.owner == Owner::kExpertRank;
    FlatGroup& group = group_for(p, whole && whole(p) ? Cut::kBetweenMatrices : Cut::kAnywhere, bucket_elements);
    const int64_t local = p.shape.numel() / (sharded ? expert_ranks : 1);
    const int64_t offset =
        group.parameters.empty() ? 0 : round_up(end_of(group.parameters.back()), kParameterAlignment);
    group.complete_after = std::min(group.complete_after, layer_of(p, c.num_hidden_layers));
    group.parameters.push_back({p, offset, local, sharded ? expert_rank * local : 0});
  }
  for (FlatGroup& group : groups_) {
    if (group.cut == Cut::kAnywhere) cut_evenly(group, shards_of(group));
    else if (group.expert_numel > 0) cut_between_experts(group, shards_of(group));
    else spread_matrices(group, shards_of(group));
    group.numel = shards_of(group) * group.shard_numel;
  }
}

ParameterLayout::ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, const ProcessMesh& mesh,
                                 int64_t bucket_elements, MatrixFilter whole)
    : ParameterLayout(c, mtp, mesh.expert().size(), mesh.expert().rank(), mesh.size(), mesh.expert_data().size(),
                      bucket_elements, whole) {}

// The last group of the parameter's kind, or a new one.
FlatGroup& ParameterLayout::group_for(const Parameter& p, Cut cut, int64_t bucket_elements) {
  const bool is_expert = p.owner == Owner::kExpertRank, in_matrices = cut == Cut::kBetweenMatrices;
  FlatGroup group{p.owner, storage_of(p), cut, is_expert && in_matrices ? matrix_numel(p) : 0};
  const char* kind = is_expert                         ? "expert"
                     : group.storage == Storage::kWide ? "small"
                     : in_matrices                     ? "matrices"
                                                       : "dense";
  const int64_t num_layers = config_.num_hidden_layers;
  int64_t count = 0;  // of buffers of this name
  FlatGroup* last = nullptr;
  for (FlatGroup& other : groups_) {
    count += other.name.starts_with(kind);
    if (other.owner == p.owner && other.storage == group.storage && other.cut == cut &&
        other.expert_numel == group.expert_numel)
      last = &other;
  }
  // The fullest of S shards holds at most its share and the largest matrix.
  int64_t enough = bucket_elements;
  if (last && in_matrices)
    for (const FlatParameter& q : last->parameters)
      enough = std::max(enough, 4 * shards_of(group) * matrix_numel(q.parameter));
  const bool is_full = last && bucket_elements > 0 && end_of(last->parameters.back()) >= enough;
  if (last && !(is_full && layer_of(last->parameters.back().parameter, num_layers) != layer_of(p, num_layers)))
    return *last;
  group.name = count > 0 ? concat(kind, '.', count) : kind;
  group.complete_after = num_layers;
  groups_.push_back(group);
  return groups_.back();
}

void ParameterLayout::bind(ModelParams& params, const std::vector<Tensor>& flat) const {
  std::map<std::string, Tensor> local;
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const FlatParameter& p : groups_[i].parameters) {
      const Shape& whole = p.parameter.shape;
      Shape shape = {p.parameter.owner == Owner::kExpertRank ? whole[0] / expert_ranks_ : whole[0]};
      for (int axis = 1; axis < whole.rank(); ++axis) shape.append(whole[axis]);
      local[p.parameter.name] = flat[i].rows(p.offset, end_of(p)).view(shape);
    }
  }
  params.visit(config_,
               [&](const std::string& name, Tensor& slot, const Shape&, const auto&...) { slot = local.at(name); });
}

void ParameterLayout::plan_weights(Planner& planner, std::vector<Tensor>& flat, DType activation) const {
  flat.resize(groups_.size());
  for (size_t i = 0; i < groups_.size(); ++i)
    planner.add(groups_[i].name + ".weights", flat[i], {groups_[i].numel}, groups_[i].weight_dtype(activation));
}

void ParameterLayout::plan_gradients(Planner& planner, std::vector<Tensor>& flat, DType activation,
                                     std::optional<DType> of_experts) const {
  flat.resize(groups_.size());
  const DType wide = wide_dtype(activation);
  for (size_t i = 0; i < groups_.size(); ++i)
    planner.add(groups_[i].name + ".gradients", flat[i], {groups_[i].numel},
                groups_[i].owner == Owner::kExpertRank ? of_experts.value_or(wide) : wide);
}

}  // namespace braid
