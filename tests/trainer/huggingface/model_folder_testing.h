#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/core/float_types.h"
#include "model/parameter_layout.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/huggingface/config_json.h"
#include "trainer/huggingface/stored_tensors.h"

namespace braid::testing {

enum class ExpertLayout { kPerExpert, kFused };

// Two layers, one of each type, four experts.
inline ModelConfig tiny_model() {
  ModelConfig c;
  c.vocab_size = 24;
  c.hidden_size = 8;
  c.num_hidden_layers = 2;
  c.full_attention_interval = 2;
  c.num_attention_heads = 2;
  c.num_key_value_heads = 1;
  c.head_dim = 8;
  c.linear_num_key_heads = 1;
  c.linear_num_value_heads = 2;
  c.linear_key_head_dim = c.linear_value_head_dim = 4;
  c.num_experts = 4;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = c.shared_expert_intermediate_size = 6;
  return c;
}

inline std::vector<Parameter> table_of(const ModelConfig& c, bool with_mtp) {
  return parameter_table(c, MtpConfig{.depth = with_mtp ? 1 : 0});
}

// Element i of a parameter in every folder of these tests: a multiple of 1/64 that every dtype holds exactly, within
// [-1, 1), around 1 for the gated norm.
inline float weight_of(const Parameter& p, int64_t i) {
  uint64_t hash = std::hash<std::string>()(p.name) + static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15;
  hash ^= hash >> 31;
  const float value = static_cast<float>(hash % 128) / 64 - 1;
  return p.name.ends_with("linear_attn.norm.weight") ? 1 + value / 2 : value;
}

inline void append_bytes(std::string& to, float value, DType dtype) {
  const auto append = [&](auto number) { to.append(reinterpret_cast<const char*>(&number), sizeof number); };
  if (dtype == DType::kF32) return append(value);
  if (dtype == DType::kBF16) return append(BFloat16(value).bits);
  // F16 of a multiple of 1/64 within (-2, 2)
  int exponent = 0;
  const float fraction = std::frexp(std::abs(value), &exponent);  // in [0.5, 1)
  const auto rest = static_cast<uint16_t>((fraction * 2 - 1) * 1024);
  const auto magnitude = static_cast<uint16_t>(value == 0 ? 0 : (exponent + 14) << 10 | rest);
  append(static_cast<uint16_t>(magnitude | (value < 0 ? 0x8000 : 0)));
}

// A model folder before it is written, to be broken by tests.
struct ModelFolder {
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::string config;
  std::vector<Tensor> tensors;

  Tensor& tensor(const std::string& name) {
    const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
    EXPECT_NE(at, tensors.end()) << name;
    return *at;
  }

  // A file with the tensors [begin, end).
  std::string file(size_t begin, size_t end) const {
    std::vector<SafetensorsTensor> entries;
    std::string data;
    for (size_t i = begin; i < end; ++i) {
      entries.push_back({tensors[i].name, tensors[i].dtype, tensors[i].shape});
      data += tensors[i].bytes;
    }
    return make_safetensors_header(entries, {{"format", "pt"}}) + data;
  }
  std::string file() const { return file(0, tensors.size()); }

  void write(const std::string& folder) const {
    std::filesystem::create_directories(folder);
    write_bytes(folder + "/config.json", config);
    write_bytes(folder + "/model.safetensors", file());
  }

  // Two shards and an index.
  void write_sharded(const std::string& folder) const {
    std::filesystem::create_directories(folder);
    write_bytes(folder + "/config.json", config);
    write_bytes(folder + "/" + kShards[0], file(0, half()));
    write_bytes(folder + "/" + kShards[1], file(half(), tensors.size()));
    write_bytes(folder + "/model.safetensors.index.json", index());
  }
  static constexpr const char* kShards[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
  size_t half() const { return tensors.size() / 2; }
  std::string index() const {
    std::string map;
    size_t bytes = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      bytes += tensors[i].bytes.size();
      map += concat(i == 0 ? "" : ",\n", "    \"", tensors[i].name, "\": \"", kShards[i < half() ? 0 : 1], "\"");
    }
    return concat("{\n  \"metadata\": {\"total_size\": ", bytes, "},\n  \"weight_map\": {\n", map, "\n  }\n}\n");
  }
};

inline ModelFolder make_model_folder(const ModelConfig& c, DType dtype = DType::kBF16, bool with_mtp = false,
                                     ExpertLayout layout = ExpertLayout::kPerExpert) {
  ModelFolder folder{.config = to_config_json(c, dtype)};
  for (const Parameter& p : table_of(c, with_mtp)) {
    int64_t i = 0;
    const auto pieces =
        layout == ExpertLayout::kFused ? std::vector<StoredTensor>{{p.name, p.shape}} : stored_tensors(p);
    for (const StoredTensor& piece : pieces) {
      ModelFolder::Tensor tensor{piece.name, dtype, {}, {}};
      for (int axis = 0; axis < piece.shape.rank(); ++axis) tensor.shape.push_back(piece.shape[axis]);
      for (int64_t k = 0; k < piece.shape.numel(); ++k) append_bytes(tensor.bytes, weight_of(p, i++), dtype);
      folder.tensors.push_back(std::move(tensor));
    }
  }
  return folder;
}

}  // namespace braid::testing
