#pragma once

#include "model/weight_source.h"

namespace braid {

// The random numbers of a parameter, by its name: a stream id of kernels/random.h.
uint64_t random_stream(const Parameter& parameter);

// The weights a new run starts from: a pure function of (seed, name, index in the whole tensor), so every layout and
// every device starts from the same ones.
class InitialWeights final : public WeightSource {
 public:
  InitialWeights(const ModelConfig& model, const InitConfig& init, uint64_t seed)
      : model_(model), init_(init), seed_(seed) {}
  const std::string& path() const override;
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override;
  bool make_on_gpu(Context& ctx, const Parameter& parameter, int64_t begin, Tensor out) const override;

 private:
  ModelConfig model_;
  InitConfig init_;
  uint64_t seed_;
};

}  // namespace braid
