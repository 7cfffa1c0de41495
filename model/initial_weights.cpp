#include "model/initial_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/float_types.h"
#include "kernels/random.h"

namespace braid {
namespace {

double output_projection_stddev(const ModelConfig& c, const InitConfig& init) {
  return c.initializer_range / (init.scale_output_projections ? std::sqrt(2.0 * double(c.num_hidden_layers)) : 1.0);
}

template <class T>
void map_values(Tensor& t, T (*function)(T)) {
  for (int64_t i = 0; i < t.numel(); ++i) t.data<T>()[i] = function(t.data<T>()[i]);
}

template <class T>
void scale_rows_to_norm(T* rows, int64_t num_rows, int64_t C, double norm) {
  for (int64_t r = 0; r < num_rows; ++r) {
    T* row = rows + r * C;
    double sum_sq = 0;
    for (int64_t c = 0; c < C; ++c) sum_sq += double(row[c]) * double(row[c]);
    for (int64_t c = 0; c < C; ++c) row[c] = T(double(row[c]) * norm / std::sqrt(sum_sq));
  }
}

// Elements [begin, begin + t.numel()) of a parameter; whole rows where the rule speaks of rows.
template <class T>
void fill_initial(Tensor t, const Parameter& p, int64_t begin, const ModelConfig& c, const InitConfig& init,
                  uint64_t seed) {
  Context ctx = Context::cpu();
  const uint64_t stream = random_stream(p);
  auto normal = [&](double stddev) { fill_normal(ctx, t, 0, stddev, seed, stream, begin); };
  switch (p.init) {
    case Init::kZero: std::fill_n(t.data<T>(), t.numel(), T(0)); break;
    case Init::kOne: std::fill_n(t.data<T>(), t.numel(), T(1)); break;
    case Init::kNormal: normal(c.initializer_range); break;
    case Init::kOutputProjection: normal(output_projection_stddev(c, init)); break;
    case Init::kEqualNormRows:
      normal(c.initializer_range);
      if (init.equal_norm_router_rows)
        scale_rows_to_norm(t.data<T>(), t.numel() / p.shape[1], p.shape[1],
                           c.initializer_range * std::sqrt(double(c.hidden_size)));
      break;
    case Init::kConv: {
      const double bound = 1 / std::sqrt(double(p.shape[2]));
      fill_uniform(ctx, t, -bound, bound, seed, stream, begin);
      break;
    }
    case Init::kLogDecay:
      fill_uniform(ctx, t, 1, 16, seed, stream, begin);
      map_values<T>(t, std::log);
      break;
  }
}

}  // namespace

uint64_t random_stream(const Parameter& p) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned char c : p.name) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

const std::string& InitialWeights::path() const {
  static const std::string name = "initial weights";
  return name;
}

void InitialWeights::read_weights(const Parameter& p, int64_t begin, int64_t end, Tensor out) const {
  const bool by_row = p.init == Init::kEqualNormRows;
  if (out.dtype() != DType::kBF16 && !by_row) {
    if (out.dtype() == DType::kF64) fill_initial<double>(out, p, begin, model_, init_, seed_);
    else fill_initial<float>(out, p, begin, model_, init_, seed_);
    return;
  }
  // By way of fp32, or of the whole rows around the range.
  const DType dtype = out.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
  const int64_t row = by_row ? p.shape[1] : 1, first = begin / row * row, last = (end + row - 1) / row * row;
  std::vector<double> memory(static_cast<size_t>(last - first));
  Tensor whole(memory.data(), dtype, {last - first});
  if (dtype == DType::kF64) fill_initial<double>(whole, p, first, model_, init_, seed_);
  else fill_initial<float>(whole, p, first, model_, init_, seed_);
  convert(out.view({end - begin}), whole.rows(begin - first, end - first));
}

// The large parameters are all of these two kinds.
bool InitialWeights::make_on_gpu(Context& ctx, const Parameter& p, int64_t begin, Tensor out) const {
  if (p.init != Init::kNormal && p.init != Init::kOutputProjection) return false;
  const double stddev = p.init == Init::kNormal ? model_.initializer_range : output_projection_stddev(model_, init_);
  fill_normal(ctx, out, 0, stddev, seed_, random_stream(p), begin);
  return true;
}

}  // namespace braid
