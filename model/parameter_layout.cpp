#include "model/parameter_layout.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kernels/random.h"

namespace braid {
namespace {

constexpr int64_t kShardAlignment = 16;  // elements, so that every shard starts on a cache line

// FNV-1a: the random stream of a parameter, from its name.
uint64_t stream_of(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

void pad_to_shards(FlatGroup& group, int64_t shards) {
  int64_t used = 0;
  for (const auto& p : group.parameters) used += p.local_numel;
  const int64_t unit = shards * kShardAlignment;
  group.numel = (used + unit - 1) / unit * unit;
  group.shard_numel = group.numel / shards;
}

template <class T>
void map_values(Tensor& t, T (*function)(T)) {
  for (int64_t i = 0; i < t.numel(); ++i) t.data<T>()[i] = function(t.data<T>()[i]);
}

template <class T>
void scale_rows_to_norm(Tensor& rows, double norm) {
  const int64_t C = rows.dim(1);
  for (int64_t r = 0; r < rows.dim(0); ++r) {
    T* row = rows.data<T>() + r * C;
    double sum_sq = 0;
    for (int64_t c = 0; c < C; ++c) sum_sq += double(row[c]) * double(row[c]);
    for (int64_t c = 0; c < C; ++c) row[c] = T(double(row[c]) * norm / std::sqrt(sum_sq));
  }
}

template <class T>
void initialize(Context& ctx, Tensor t, const FlatParameter& flat, const ModelConfig& c, const InitConfig& init,
                uint64_t seed) {
  const Parameter& p = flat.parameter;
  const uint64_t stream = stream_of(p.name);
  auto normal = [&](double stddev) { fill_normal(ctx, t, 0, stddev, seed, stream, flat.global_first); };
  switch (p.init) {
    case Init::kZero: std::fill_n(t.data<T>(), t.numel(), T(0)); break;
    case Init::kOne: std::fill_n(t.data<T>(), t.numel(), T(1)); break;
    case Init::kNormal: normal(c.initializer_range); break;
    case Init::kOutputProjection:
      normal(c.initializer_range /
             (init.scale_output_projections ? std::sqrt(2.0 * double(c.num_hidden_layers)) : 1.0));
      break;
    case Init::kEqualNormRows:
      normal(c.initializer_range);
      if (init.equal_norm_router_rows) {
        Tensor rows = t.view(p.shape);
        scale_rows_to_norm<T>(rows, c.initializer_range * std::sqrt(double(c.hidden_size)));
      }
      break;
    case Init::kConv: {
      const double bound = 1 / std::sqrt(double(p.shape[2]));
      fill_uniform(ctx, t, -bound, bound, seed, stream, flat.global_first);
      break;
    }
    case Init::kLogDecay:
      fill_uniform(ctx, t, 1, 16, seed, stream, flat.global_first);
      map_values<T>(t, std::log);
      break;
  }
}

}  // namespace

ModelParams::ModelParams(const ModelConfig& c, const MtpConfig& mtp_config) : mtp(mtp_config.on() ? 1 : 0) {
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.emplace_back(c.layer_type(i));
}

std::vector<Parameter> parameter_table(const ModelConfig& c, const MtpConfig& mtp) {
  std::vector<Parameter> table;
  ModelParams params(c, mtp);
  params.visit(c, [&](const std::string& name, Tensor&, Shape shape, Owner owner, Init init, Decay decay) {
    table.push_back({name, shape, owner, init, decay});
  });
  return table;
}

std::string format_parameter_table(const std::vector<Parameter>& table) {
  size_t name_width = 0;
  for (const auto& p : table) name_width = std::max(name_width, p.name.size());
  std::ostringstream out;
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

ParameterLayout::ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, int64_t expert_ranks, int64_t expert_rank,
                                 int64_t dense_shards, int64_t expert_shards)
    : config_(c), expert_ranks_(expert_ranks) {
  for (const Parameter& p : parameter_table(c, mtp)) {
    const bool sharded = p.owner == Owner::kExpertRank;
    FlatGroup& group = sharded ? expert_ : dense_;
    const int64_t local = p.shape.numel() / (sharded ? expert_ranks : 1);
    const int64_t offset =
        group.parameters.empty() ? 0 : group.parameters.back().offset + group.parameters.back().local_numel;
    group.parameters.push_back({p, offset, local, sharded ? expert_rank * local : 0});
  }
  pad_to_shards(dense_, dense_shards);
  pad_to_shards(expert_, expert_shards);
}

ParameterLayout::ParameterLayout(const ModelConfig& c, const MtpConfig& mtp, const ProcessMesh& mesh)
    : ParameterLayout(c, mtp, mesh.expert().size(), mesh.expert().rank(), mesh.size(), mesh.expert_data().size()) {}

void ParameterLayout::bind(ModelParams& params, Tensor dense, Tensor expert) const {
  size_t next_dense = 0, next_expert = 0;
  params.visit(config_, [&](const std::string&, Tensor& slot, Shape shape, Owner owner, Init, Decay) {
    const bool sharded = owner == Owner::kExpertRank;
    const FlatParameter& flat = sharded ? expert_.parameters[next_expert++] : dense_.parameters[next_dense++];
    Shape local = {sharded ? shape[0] / expert_ranks_ : shape[0]};
    for (int axis = 1; axis < shape.rank(); ++axis) local.append(shape[axis]);
    slot = (sharded ? expert : dense).rows(flat.offset, flat.offset + flat.local_numel).view(local);
  });
}

void initialize_weights(Context& ctx, const ModelConfig& c, const InitConfig& init, const ParameterLayout& layout,
                        Tensor dense, Tensor expert, uint64_t seed) {
  for (const FlatGroup* group : {&layout.dense(), &layout.expert()}) {
    Tensor& flat = group->owner == Owner::kExpertRank ? expert : dense;
    for (const FlatParameter& p : group->parameters) {
      Tensor t = flat.rows(p.offset, p.offset + p.local_numel);
      if (t.dtype() == DType::kF64) initialize<double>(ctx, t, p, c, init, seed);
      else initialize<float>(ctx, t, p, c, init, seed);
    }
  }
}

}  // namespace braid
