#include "trainer/huggingface/config_json.h"

#include "tests/file_testing.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

using namespace braid::testing;

// As transformers 5.23 saves a tiny model.
constexpr const char* kVersion5 = R"({
  "architectures": [
    "Qwen3NextForCausalLM"
  ],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": null,
  "decoder_sparse_step": 1,
  "dtype": "bfloat16",
  "eos_token_id": null,
  "head_dim": 8,
  "hidden_act": "silu",
  "hidden_size": 16,
  "initializer_range": 0.02,
  "intermediate_size": 5632,
  "layer_types": [
    "linear_attention",
    "linear_attention",
    "linear_attention",
    "full_attention"
  ],
  "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 4,
  "linear_num_key_heads": 1,
  "linear_num_value_heads": 2,
  "linear_value_head_dim": 4,
  "max_position_embeddings": 32768,
  "mlp_only_layers": [],
  "model_type": "qwen3_next",
  "moe_intermediate_size": 4,
  "norm_topk_prob": true,
  "num_attention_heads": 2,
  "num_experts": 4,
  "num_experts_per_tok": 2,
  "num_hidden_layers": 4,
  "num_key_value_heads": 1,
  "output_router_logits": false,
  "pad_token_id": null,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000.0,
    "rope_type": "default"
  },
  "router_aux_loss_coef": 0.001,
  "shared_expert_intermediate_size": 4,
  "tie_word_embeddings": false,
  "transformers_version": "5.23.0",
  "use_cache": true,
  "vocab_size": 32
}
)";

// The released model's, in the spelling of version 4.
constexpr const char* kVersion4 = R"({
  "architectures": ["Qwen3NextForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "bos_token_id": 151643,
  "decoder_sparse_step": 1,
  "eos_token_id": 151645,
  "full_attention_interval": 4,
  "head_dim": 256,
  "hidden_act": "silu",
  "hidden_size": 2048,
  "initializer_range": 0.02,
  "intermediate_size": 5120,
  "linear_conv_kernel_dim": 4,
  "linear_key_head_dim": 128,
  "linear_num_key_heads": 16,
  "linear_num_value_heads": 32,
  "linear_value_head_dim": 128,
  "max_position_embeddings": 262144,
  "mlp_only_layers": [],
  "model_type": "qwen3_next",
  "moe_intermediate_size": 512,
  "norm_topk_prob": true,
  "num_attention_heads": 16,
  "num_experts": 512,
  "num_experts_per_tok": 10,
  "num_hidden_layers": 48,
  "num_key_value_heads": 2,
  "output_router_logits": false,
  "partial_rotary_factor": 0.25,
  "rms_norm_eps": 1e-06,
  "rope_scaling": null,
  "rope_theta": 10000000,
  "router_aux_loss_coef": 0.001,
  "shared_expert_intermediate_size": 512,
  "tie_word_embeddings": false,
  "torch_dtype": "bfloat16",
  "transformers_version": "4.57.0.dev0",
  "use_cache": true,
  "use_sliding_window": false,
  "vocab_size": 151936
})";

std::string yaml_of(const ModelConfig& model) {
  RunConfig config;
  config.model = model;
  return to_yaml(config);
}

class ConfigJsonTest : public FolderTest {
 protected:
  ModelConfig read(const std::string& text) {
    write_bytes(path("config.json"), text);
    return read_config_json(path("config.json"));
  }
  // A config with these keys besides the model type.
  ModelConfig read_with(const std::string& keys) { return read(R"({"model_type":"qwen3_next",)" + keys + "}"); }
  // What is refused, behind the name of the file.
  std::string refusal(const std::string& text) {
    const std::string message = message_of<CheckpointError>([&] { read(text); });
    const std::string start = path("config.json") + ": ";
    EXPECT_TRUE(message.starts_with(start)) << "names the file: " << message << "\n" << text;
    return message.substr(std::min(start.size(), message.size()));
  }
  std::string refusal_with(const std::string& keys) { return refusal(R"({"model_type":"qwen3_next",)" + keys + "}"); }
};

TEST_F(ConfigJsonTest, ReadsVersion4) { EXPECT_EQ(yaml_of(read(kVersion4)), yaml_of(ModelConfig())); }

TEST_F(ConfigJsonTest, ReadsVersion5) {
  ModelConfig expected;
  expected.head_dim = 8;
  expected.hidden_size = 16;
  expected.linear_key_head_dim = expected.linear_value_head_dim = 4;
  expected.linear_num_key_heads = 1;
  expected.linear_num_value_heads = 2;
  expected.max_position_embeddings = 32768;
  expected.moe_intermediate_size = expected.shared_expert_intermediate_size = 4;
  expected.num_attention_heads = 2;
  expected.num_experts = 4;
  expected.num_experts_per_tok = 2;
  expected.num_hidden_layers = 4;
  expected.num_key_value_heads = 1;
  expected.rope_theta = 10000;
  expected.vocab_size = 32;
  EXPECT_EQ(yaml_of(read(kVersion5)), yaml_of(expected));
}

// What Qwen3NextConfig() of transformers 5.23 holds.
TEST_F(ConfigJsonTest, AbsentKeysHaveTheDefaultsOfTransformers) {
  const ModelConfig read = this->read(R"({"model_type": "qwen3_next"})");
  ModelConfig expected;
  expected.vocab_size = 151936;
  expected.hidden_size = 2048;
  expected.num_hidden_layers = 48;
  expected.num_attention_heads = 16;
  expected.num_key_value_heads = 2;
  expected.head_dim = 256;
  expected.partial_rotary_factor = 0.25;
  expected.rope_theta = 10000;
  expected.max_position_embeddings = 32768;
  expected.rms_norm_eps = 1e-6;
  expected.initializer_range = 0.02;
  expected.hidden_act = "silu";
  expected.attention_bias = false;
  expected.attention_dropout = 0;
  expected.tie_word_embeddings = false;
  expected.linear_num_key_heads = 16;
  expected.linear_num_value_heads = 32;
  expected.linear_key_head_dim = expected.linear_value_head_dim = 128;
  expected.linear_conv_kernel_dim = 4;
  expected.num_experts = 512;
  expected.num_experts_per_tok = 10;
  expected.moe_intermediate_size = expected.shared_expert_intermediate_size = 512;
  expected.norm_topk_prob = true;
  expected.full_attention_interval = 4;
  expected.layer_types.clear();
  EXPECT_EQ(yaml_of(read), yaml_of(expected));
}

TEST_F(ConfigJsonTest, TakesBothSpellingsOfRotaryEmbeddings) {
  const auto rope = [&](const std::string& keys) {
    const ModelConfig model = read_with(keys);
    return std::pair(model.rope_theta, model.partial_rotary_factor);
  };
  const std::pair<double, double> expected = {5e5, 0.5};
  EXPECT_EQ(rope(R"("rope_theta":500000,"partial_rotary_factor":0.5)"), expected);
  EXPECT_EQ(rope(R"("rope_parameters":{"rope_type":"default","rope_theta":5e5,"partial_rotary_factor":0.5})"),
            expected);
  EXPECT_EQ(rope(R"("rope_scaling":{"type":"default","rope_theta":500000.0,"partial_rotary_factor":0.5})"), expected);
  EXPECT_EQ(rope(R"("rope_theta":5e5,"rope_parameters":{"partial_rotary_factor":0.5})"), expected);
  EXPECT_EQ(rope(R"("rope_theta":5e5,"rope_scaling":null,"partial_rotary_factor":0.5,
                    "rope_parameters":{"rope_type":"default","rope_theta":500000,"partial_rotary_factor":0.5})"),
            expected);
  EXPECT_EQ(rope(R"("rope_parameters":{"rope_theta":5e5})"), (std::pair(5e5, 0.25)));
  const RopeParameters scaled =
      read_with(
          R"("rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":1024,"beta_fast":null,"truncate":false})")
          .rope_parameters;
  EXPECT_EQ(scaled.rope_type, RopeType::kYarn);
  EXPECT_EQ(scaled.factor, 4);
  EXPECT_EQ(scaled.original_max_position_embeddings, 1024);
  EXPECT_EQ(scaled.beta_fast, 32);
  EXPECT_FALSE(scaled.truncate);
  EXPECT_EQ(rope(R"("rope_parameters":null)"), (std::pair(1e4, 0.25)));
}

TEST_F(ConfigJsonTest, KeepsLayerTypesThatNoIntervalGives) {
  constexpr LayerType kLinear = LayerType::kLinearAttention, kFull = LayerType::kFullAttention;
  const auto types = [&](const std::string& keys) { return read_with(keys + R"(,"num_hidden_layers":3)").layer_types; };
  const std::string linear_full_linear = R"("layer_types":["linear_attention","full_attention","linear_attention"])";
  EXPECT_EQ(types(linear_full_linear), (std::vector{kLinear, kFull, kLinear}));
  EXPECT_EQ(types(linear_full_linear + R"(,"full_attention_interval":3)"), (std::vector{kLinear, kFull, kLinear}));
  EXPECT_EQ(types(linear_full_linear + R"(,"full_attention_interval":2)"), std::vector<LayerType>());
  EXPECT_EQ(types(R"("layer_types":["linear_attention","linear_attention","linear_attention"])"),
            std::vector<LayerType>());
  EXPECT_EQ(types(R"("layer_types":["full_attention","linear_attention","linear_attention"])"),
            (std::vector{kFull, kLinear, kLinear}));
}

TEST_F(ConfigJsonTest, IgnoresWhatItHasNoUseFor) {
  EXPECT_EQ(yaml_of(read_with(R"("layer_types":null,"mlp_only_layers":null,"dtype":7,"torch_dtype":"float16",
                                 "num_nextn_predict_layers":1,"id2label":{"0":"a","1":"a"},"more":[{"a":1},{"a":1}],
                                 "quantization_config":null,"attn_output_gate":true,"output_router_logits":true)")),
            yaml_of(read(R"({"model_type":"qwen3_next"})")));
}

TEST_F(ConfigJsonTest, RefusesRotaryEmbeddingsThatDisagreeOrAreOthers) {
  EXPECT_EQ(refusal_with(R"("rope_theta":5e5,"rope_parameters":{"rope_theta":1e4})"),
            "rope_theta is 500000.0, expected 10000.0 as elsewhere in the file");
  EXPECT_EQ(refusal_with(R"("partial_rotary_factor":0.25,"rope_parameters":{"partial_rotary_factor":1})"),
            "partial_rotary_factor is 0.25, expected 1 as elsewhere in the file");
  EXPECT_EQ(refusal_with(R"("rope_scaling":{"rope_theta":2},"rope_parameters":{"rope_theta":1})"),
            "rope_scaling.rope_theta is 2, expected 1 as elsewhere in the file");
  EXPECT_EQ(
      refusal_with(R"("rope_parameters":{"rope_type":"yarn","long_factor":4.0})"),
      "rope_parameters holds \"long_factor\", expected rope_theta, partial_rotary_factor and the keys of rope_type "
      "default, linear or yarn");
  EXPECT_EQ(refusal_with(R"("rope_scaling":{"type":"longrope"})"),
            "rope_scaling.type is \"longrope\", expected \"default\", \"linear\" or \"yarn\"");
  EXPECT_EQ(refusal_with(R"("rope_scaling":{"rope_type":null})"),
            "rope_scaling.rope_type is null, expected \"default\", \"linear\" or \"yarn\"");
  EXPECT_EQ(refusal_with(R"("rope_scaling":{"rope_type":"linear"},"rope_parameters":{"rope_type":"yarn"})"),
            "rope_scaling.rope_type is \"linear\", expected \"yarn\" as elsewhere in the file");
  EXPECT_EQ(
      refusal_with(R"("rope_parameters":{"full_attention":{"rope_theta":1e4}})"),
      "rope_parameters holds \"full_attention\", expected rope_theta, partial_rotary_factor and the keys of rope_type "
      "default, linear or yarn");
  EXPECT_EQ(refusal_with(R"("rope_parameters":[])"), "rope_parameters is [], expected an object");
  EXPECT_EQ(refusal_with(R"("rope_parameters":{"rope_theta":"1e4"})"),
            "rope_parameters.rope_theta is \"1e4\", expected a number");
}

TEST_F(ConfigJsonTest, RefusesWhatItCannotHonour) {
  EXPECT_EQ(refusal("{}"), "model_type is missing, expected \"qwen3_next\"");
  EXPECT_EQ(refusal(R"({"model_type":"qwen3_moe"})"),
            "model_type is \"qwen3_moe\", expected \"qwen3_next\", the only one supported");
  EXPECT_EQ(refusal(R"({"model_type":["qwen3_next"]})"),
            "model_type is [\"qwen3_next\"], expected \"qwen3_next\", the only one supported");
  EXPECT_EQ(refusal_with(R"("decoder_sparse_step":2)"),
            "decoder_sparse_step is 2, expected 1, the only value supported");
  EXPECT_EQ(refusal_with(R"("mlp_only_layers":[0])"), "mlp_only_layers is [0], expected [], the only value supported");
  EXPECT_EQ(refusal_with(R"("use_sliding_window":true)"),
            "use_sliding_window is true, expected false, the only value supported");
  EXPECT_EQ(refusal_with(R"("quantization_config":{"quant_method":"fp8"})"),
            "quantization_config is {\"quant_method\":\"fp8\"}, expected null, the only value supported");
  expect_contains(refusal_with(R"("tie_word_embeddings":true)"), "tie_word_embeddings is true, but only false");
  expect_contains(refusal_with(R"("attention_bias":true)"), "attention_bias is true, but only false");
  expect_contains(refusal_with(R"("attention_dropout":0.1)"), "attention_dropout is 0.1, but only 0");
  expect_contains(refusal_with(R"("hidden_act":"gelu")"), "hidden_act is gelu, but only silu");
}

// Each key of the model with values of another type.
TEST_F(ConfigJsonTest, RefusesWrongTypes) {
  struct Kind {
    std::string expected;
    std::vector<const char*> wrong;
  };
  const Kind integer = {"an integer", {"1.0", "-0.5", "\"1\"", "true", "null", "[1]", "{}", "9223372036854775808"}};
  const Kind number = {"a number", {"\"1\"", "true", "null", "[0.5]", "{}"}};
  const Kind boolean = {"true or false", {"0", "1", "\"true\"", "null", "[]", "{}"}};
  const Kind string = {"a string", {"0", "true", "null", "[\"silu\"]", "{}"}};
  const Kind list = {"a list", {"\"full_attention\"", "1", "true", "{}"}};
  const auto kind_of = [&](const auto& value) -> const Kind& {
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, int64_t>) return integer;
    else if constexpr (std::is_same_v<T, double>) return number;
    else if constexpr (std::is_same_v<T, bool>) return boolean;
    else if constexpr (std::is_same_v<T, std::string>) return string;
    else return list;
  };
  int num_keys = 0;
  ModelConfig().visit([&](const std::string& key, const auto& value, const char*) {
    ++num_keys;
    const Kind& kind = kind_of(value);
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, RopeParameters>) return;  // in the tests of rope
    for (const char* wrong : kind.wrong)
      EXPECT_EQ(refusal_with(concat("\"", key, "\":", wrong)),
                concat(key, " is ", wrong, ", expected ", kind.expected));
  });
  EXPECT_EQ(num_keys, 29);
  EXPECT_EQ(refusal_with(R"("num_hidden_layers":1,"layer_types":["sliding_attention"])"),
            "layer_types holds \"sliding_attention\", expected linear_attention or full_attention");
  EXPECT_EQ(refusal_with(R"("num_hidden_layers":1,"layer_types":[0])"),
            "layer_types holds 0, expected linear_attention or full_attention");
}

TEST_F(ConfigJsonTest, RefusesValuesThatMakeNoModel) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "num_experts"})
    for (const char* value : {"0", "-1", "-9223372036854775808", "9223372036854775807"})
      expect_contains(refusal_with(concat("\"", key, "\":", value)),
                      concat(key, " is ", value, ", but must be within 1 and 2147483647"));
  expect_contains(refusal_with(R"("num_experts_per_tok":513)"), "must be at most model.num_experts, 512");
  expect_contains(refusal_with(R"("rope_theta":-1)"), "rope_theta is -1, but must be greater than 0");
  expect_contains(refusal_with(R"("rms_norm_eps":0)"), "rms_norm_eps is 0, but must be greater than 0");
  expect_contains(refusal_with(R"("partial_rotary_factor":1.5)"), "partial_rotary_factor is 1.5");
  expect_contains(refusal_with(R"("num_attention_heads":3)"), "must be a multiple of model.num_key_value_heads, 2");
  expect_contains(refusal_with(R"("layer_types":["full_attention"])"), "must name model.num_hidden_layers types, 48");
}

TEST_F(ConfigJsonTest, RefusesBrokenText) {
  const std::string invalid = "is not valid JSON in UTF-8";
  for (const char* text : {"", "{", "[", "{]", "nul", "{} {}", "{'a':1}", "{\"a\":1,}", "{\"a\xff\":1}", "{/**/}"})
    expect_contains(refusal(text), invalid);
  for (const char* text : {"[]", "null", "1", "\"qwen3_next\""}) EXPECT_EQ(refusal(text), "is not an object");
  expect_contains(refusal(std::string("{\"model_type\":\"qwen3_next\"}\0{", 29)), "zero byte");
  for (const char* number : {"NaN", "Infinity", "-Infinity", "1e999", "01", "+1", "0x10"})
    EXPECT_EQ(refusal_with(concat("\"rope_theta\":", number)), invalid + " at or behind the key \"rope_theta\"");
}

TEST_F(ConfigJsonTest, RefusesKeysThatAreThereTwice) {
  EXPECT_EQ(refusal_with(R"("hidden_size":2048,"head_dim":256,"hidden_size":2048)"),
            "holds the key \"hidden_size\" twice");
  EXPECT_EQ(refusal_with(R"("a":{"b":1,"b":2})"), "holds the key \"b\" twice");
  EXPECT_EQ(refusal_with(R"("a":{"b":{"a":1}},"a":2)"), "holds the key \"a\" twice");
}

TEST_F(ConfigJsonTest, RefusesFilesThatAreTooLarge) {
  EXPECT_EQ(refusal("{" + std::string(1 << 20, ' ') + "}"), "is 1048578 bytes long, at most 1048576 are read");
  EXPECT_EQ(refusal(std::string(1 << 20, '[')), "nests deeper than 32 levels");
  std::string nested = "{";
  while (nested.size() < 1000000) nested += "\"a\":{";
  EXPECT_EQ(refusal(nested), "nests deeper than 32 levels");
  EXPECT_EQ(message_of<CheckpointError>([&] { read_config_json(path("absent.json")); }),
            path("absent.json") + ": is missing");
}

TEST_F(ConfigJsonTest, ReadsWhatItWrites) {
  ModelConfig model = read(kVersion5);
  for (const ModelConfig& c : {ModelConfig(), model}) {
    const std::string text = to_config_json(c, DType::kF32);
    EXPECT_EQ(yaml_of(read(text)), yaml_of(c));
    expect_contains(text, "\"torch_dtype\": \"float32\"");
    expect_contains(to_config_json(c, DType::kBF16), "\"torch_dtype\": \"bfloat16\"");
  }
  // Every key away from its default.
  model.visit([](const std::string&, auto& value, const char*) {
    using T = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<T, int64_t>) value *= 2;
    else if constexpr (std::is_same_v<T, double>) value *= 1.1;
  });
  model.num_experts_per_tok = 3;
  model.norm_topk_prob = false;
  model.partial_rotary_factor = 0.5;
  model.rms_norm_eps = 1.0 / 3;
  model.layer_types.assign(8, LayerType::kFullAttention);
  EXPECT_EQ(yaml_of(read(to_config_json(model, DType::kF32))), yaml_of(model));
  for (const RopeParameters& rope : {RopeParameters{RopeType::kLinear, 2.5}, RopeParameters{RopeType::kYarn, 8, 4096},
                                     RopeParameters{RopeType::kYarn, 4, 0, 1.25, 16, 2, 0.7, 0.9, false}}) {
    model.rope_parameters = rope;
    EXPECT_EQ(yaml_of(read(to_config_json(model, DType::kF32))), yaml_of(model));
  }
}

}  // namespace
}  // namespace braid
