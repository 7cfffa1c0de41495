// Writes a Hugging Face folder of any size with random BF16 weights, for tests and benchmarks of import and export:
//   make_model_folder FOLDER NUM_LAYERS [NUM_EXPERTS [HIDDEN_SIZE [MOE_INTERMEDIATE_SIZE]]]
// The defaults give 100 MB per layer, the MTP block among them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "model/parameter_layout.h"
#include "trainer/huggingface/huggingface_writer.h"

namespace braid {
namespace {

// A pure function of name and index, so that blocks may be asked for in any way. Nothing in it compresses.
class RandomWeights final : public WeightSource {
 public:
  const std::string& path() const override { return path_; }
  void read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const override {
    const uint64_t key = std::hash<std::string>()(parameter.name);
    // Sign, fraction and two bits of the exponent: magnitudes of 2^-7 to 2^-3. The gated norm lies within [1, 1.5).
    const bool is_gated_norm = parameter.name.ends_with("linear_attn.norm.weight");
    const uint16_t fixed = is_gated_norm ? 0x3f80 : 0x3c00, random = is_gated_norm ? 0x003f : 0x81ff;
    auto* bits = static_cast<uint16_t*>(out.raw());
    for (int64_t i = begin; i < end; ++i) *bits++ = fixed | (hash(key + static_cast<uint64_t>(i)) & random);
  }

 private:
  static uint16_t hash(uint64_t x) {
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9;
    return static_cast<uint16_t>(x >> 40);
  }
  const std::string path_ = "random weights";
};

void make(const std::string& folder, int64_t layers, int64_t experts, int64_t hidden, int64_t intermediate) {
  ModelConfig model;
  model.vocab_size = 4096;
  model.hidden_size = hidden;
  model.num_hidden_layers = layers;
  model.num_attention_heads = 4;
  model.num_key_value_heads = 1;
  model.linear_num_key_heads = 2;
  model.linear_num_value_heads = 4;
  model.num_experts = experts;
  model.num_experts_per_tok = std::min<int64_t>(experts, 10);
  model.moe_intermediate_size = model.shared_expert_intermediate_size = intermediate;
  std::vector<TypedParameter> parameters;
  for (const Parameter& p : parameter_table(model, MtpConfig())) parameters.push_back({p, DType::kBF16});
  write_model_folder(RandomWeights(), model, parameters, folder);
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  const auto number = [&](int i, int64_t otherwise) { return i < argc ? std::atoll(argv[i]) : otherwise; };
  if (argc < 3 || argc > 6 || number(2, 0) < 1) {
    std::fprintf(stderr, "usage: %s FOLDER NUM_LAYERS [NUM_EXPERTS [HIDDEN_SIZE [MOE_INTERMEDIATE_SIZE]]]\n", argv[0]);
    return 2;
  }
  try {
    braid::make(argv[1], number(2, 1), number(3, 32), number(4, 1024), number(5, 512));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[0], e.what());
    return 1;
  }
}
