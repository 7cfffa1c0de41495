#include "trainer/huggingface/huggingface_reader.h"

#include <limits>

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

class HuggingFaceReaderTest : public FolderTest {
 protected:
  std::string refusal(const ModelFolder& folder) {
    folder.write(path("m"));
    return message_of<CheckpointError>([&] { HuggingFaceReader reader(path("m")); });
  }
};

// Elements [begin, end) as T, and what they must be.
template <class T>
void expect_weights(const HuggingFaceReader& reader, const Parameter& p, int64_t begin, int64_t end) {
  std::vector<T> out(end - begin);
  reader.read_weights(p, begin, end, Tensor::of(out.data(), {end - begin}));
  for (int64_t i = begin; i < end; ++i)
    ASSERT_EQ(static_cast<float>(out[i - begin]), weight_of(p, i)) << p.name << " " << i;
}

void expect_all_weights(const HuggingFaceReader& reader) {
  for (const Parameter& p : reader.parameters()) {
    const int64_t numel = p.shape.numel();
    expect_weights<float>(reader, p, 0, numel);
    expect_weights<double>(reader, p, 0, numel);
    expect_weights<BFloat16>(reader, p, 0, numel);
    expect_weights<float>(reader, p, numel / 3, numel - numel / 5);  // crosses pieces of experts
    expect_weights<BFloat16>(reader, p, numel - 1, numel);
    expect_weights<float>(reader, p, 1, 1);
  }
}

TEST_F(HuggingFaceReaderTest, ReadsEveryDtypeAndLayout) {
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    for (ExpertLayout layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused})
      for (bool with_mtp : {false, true}) {
        const ModelFolder folder = make_model_folder(tiny_model(), dtype, with_mtp, layout);
        folder.write(path("one"));
        folder.write_sharded(path("sharded"));
        for (const char* name : {"one", "sharded"}) {
          const HuggingFaceReader reader(path(name));
          EXPECT_EQ(reader.path(), path(name));
          EXPECT_EQ(reader.has_mtp(), with_mtp);
          EXPECT_EQ(to_config_json(reader.config(), dtype), folder.config);
          const std::vector<Parameter> table = table_of(tiny_model(), with_mtp);
          ASSERT_EQ(reader.parameters().size(), table.size());
          int64_t numel = 0;
          for (size_t i = 0; i < table.size(); ++i) {
            EXPECT_EQ(reader.parameters()[i].name, table[i].name);
            EXPECT_EQ(reader.stored_dtype(table[i]), dtype == DType::kBF16 ? DType::kBF16 : DType::kF32);
            numel += table[i].shape.numel();
          }
          EXPECT_EQ(reader.total_bytes(), numel * size_of(dtype));
          expect_all_weights(reader);
        }
      }
}

TEST_F(HuggingFaceReaderTest, LayoutMayDifferByLayerAndDtypeByParameter) {
  ModelFolder folder = make_model_folder(tiny_model());
  const ModelFolder fused = make_model_folder(tiny_model(), DType::kF32, false, ExpertLayout::kFused);
  std::erase_if(folder.tensors, [](const ModelFolder::Tensor& t) {
    return t.name.starts_with("model.layers.1.mlp.experts.") || t.name.ends_with("A_log");
  });
  for (const ModelFolder::Tensor& t : fused.tensors)
    if (t.name.starts_with("model.layers.1.mlp.experts.") || t.name.ends_with("A_log")) folder.tensors.push_back(t);
  folder.write(path("m"));
  const HuggingFaceReader reader(path("m"));
  expect_all_weights(reader);
  for (const Parameter& p : reader.parameters()) {
    const bool is_f32 = p.name.starts_with("model.layers.1.mlp.experts.") || p.name.ends_with("A_log");
    EXPECT_EQ(reader.stored_dtype(p), is_f32 ? DType::kF32 : DType::kBF16) << p.name;
  }
}

TEST_F(HuggingFaceReaderTest, ReadsLargeParametersInBlocks) {
  ModelConfig c = tiny_model();
  c.vocab_size = 40000;  // 320000 elements
  make_model_folder(c).write(path("m"));
  const HuggingFaceReader reader(path("m"));
  const Parameter& embedding = reader.parameters()[0];
  expect_weights<BFloat16>(reader, embedding, 0, 320000);
  expect_weights<float>(reader, embedding, 3, 319990);
}

TEST_F(HuggingFaceReaderTest, FillsALayout) {
  const ModelConfig c = tiny_model();
  make_model_folder(c, DType::kF32, true).write(path("m"));
  const HuggingFaceReader reader(path("m"));
  const ParameterLayout layout(c, MtpConfig{}, 2, 1, 2, 1);  // the second half of the experts
  std::vector<Tensor> flat;
  for (const FlatGroup& group : layout.groups()) flat.push_back(zeros({group.numel}, DType::kF32));
  Context ctx = Context::cpu();
  load_weights(ctx, reader, layout, flat);
  for (size_t g = 0; g < flat.size(); ++g) {
    const FlatGroup& group = layout.groups()[g];
    for (const FlatParameter& p : group.parameters) {
      EXPECT_EQ(p.global_first > 0, group.owner == Owner::kExpertRank);
      for (int64_t i = 0; i < p.local_numel; ++i)
        ASSERT_EQ(flat[g].data<float>()[p.offset + i], weight_of(p.parameter, p.global_first + i)) << p.parameter.name;
    }
  }
}

TEST_F(HuggingFaceReaderTest, RefusesParametersItDoesNotHold) {
  make_model_folder(tiny_model()).write(path("m"));
  const HuggingFaceReader reader(path("m"));
  float value = 0;
  Parameter p = reader.parameters()[0];
  const auto message = [&] {
    return message_of<CheckpointError>([&] { reader.read_weights(p, 0, 1, Tensor::of(&value, {1})); });
  };
  p.shape = {8, 24};
  EXPECT_EQ(message(), path("m") + ": does not hold model.embed_tokens.weight in shape (8, 24)");
  p = {"mtp.norm.weight", {8}, Owner::kEveryRank, Init::kZero, Decay::kNorm};
  EXPECT_EQ(message(), path("m") + ": does not hold mtp.norm.weight in shape (8)");
}

// Every tensor of the model in turn: absent, under another name, transposed.
TEST_F(HuggingFaceReaderTest, NamesWhatIsMissingUnexpectedOrMisshaped) {
  for (ExpertLayout layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused}) {
    const ModelFolder good = make_model_folder(tiny_model(), DType::kBF16, true, layout);
    const std::string start = path("m") + ": its tensors are not those of the model in config.json: ";
    for (size_t i = 0; i < good.tensors.size(); ++i) {
      const std::string name = good.tensors[i].name;
      const Shape shape = [&] {
        Shape s;
        for (int64_t dim : good.tensors[i].shape) s.append(dim);
        return s;
      }();
      ModelFolder folder = good;
      folder.tensors.erase(folder.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      EXPECT_EQ(refusal(folder), start + "1 missing: \"" + name + "\" " + shape.to_string());

      folder = good;
      folder.tensors[i].name = "other." + name;
      EXPECT_EQ(refusal(folder), concat(start, "1 missing: \"", name, "\" ", shape.to_string(),
                                        "; 1 unexpected: \"other.", name, "\" ", shape.to_string()));
      folder = good;
      std::vector<int64_t>& dims = folder.tensors[i].shape;
      if (shape.rank() == 1) dims.push_back(1);
      else std::swap(dims[dims.size() - 2], dims[dims.size() - 1]);
      if (good.tensors[i].shape == dims) continue;  // a square matrix
      Shape changed;
      for (int64_t dim : dims) changed.append(dim);
      EXPECT_EQ(refusal(folder), concat(start, "1 of another shape: \"", name, "\" is ", changed.to_string(),
                                        ", expected ", shape.to_string()));
    }
  }
}

TEST_F(HuggingFaceReaderTest, ListsTheFirstTwentyAndTheirNumber) {
  ModelFolder folder = make_model_folder(tiny_model());
  for (int i = 0; i < 33; ++i) folder.tensors.push_back({concat("extra.", i), DType::kF32, {1, 0, 3, 4, 5}, ""});
  std::erase_if(folder.tensors, [](const ModelFolder::Tensor& t) { return t.name.starts_with("model.layers.1.mlp"); });
  const std::string message = refusal(folder);
  // 4 experts with 3 projections, the router, 4 tensors of the shared expert
  expect_contains(message, "17 missing: \"model.layers.1.mlp.gate.weight\" (4, 8), ");
  expect_contains(message, "; 33 unexpected: \"extra.0\" (1, 0, 3, 4, 5), \"extra.1\"");
  EXPECT_TRUE(message.ends_with(" and 13 more")) << message;
}

TEST_F(HuggingFaceReaderTest, RefusesPartOfAnMtpBlock) {
  ModelFolder folder = make_model_folder(tiny_model());
  folder.tensors.push_back({"mtp.norm.weight", DType::kBF16, {8}, std::string(16, '\0')});
  expect_contains(refusal(folder), "missing: \"mtp.fc.weight\" (8, 16), \"mtp.pre_fc_norm_embedding.weight\" (8), ");
}

TEST_F(HuggingFaceReaderTest, RefusesMixedExperts) {
  const ModelFolder fused = make_model_folder(tiny_model(), DType::kBF16, false, ExpertLayout::kFused);
  ModelFolder folder = make_model_folder(tiny_model());
  for (const ModelFolder::Tensor& t : fused.tensors)
    if (t.name == "model.layers.1.mlp.experts.down_proj") folder.tensors.push_back(t);
  EXPECT_EQ(refusal(folder), path("m") +
                                 ": the experts of one layer are stored in two ways: "
                                 "model.layers.1.mlp.experts.down_proj and "
                                 "\"model.layers.1.mlp.experts.0.down_proj.weight\"");
  // one projection of each kind
  std::erase_if(folder.tensors, [](const ModelFolder::Tensor& t) {
    return t.name.starts_with("model.layers.1.mlp.experts.") && t.name.ends_with("down_proj.weight");
  });
  expect_contains(refusal(folder), "stored in two ways");

  folder = make_model_folder(tiny_model());
  ModelFolder::Tensor& tensor = folder.tensor("model.layers.0.mlp.experts.2.up_proj.weight");
  tensor.dtype = DType::kF32;
  tensor.bytes = std::string(tensor.bytes.size() * 2, '\0');
  EXPECT_EQ(refusal(folder), path("m") +
                                 "/model.safetensors: tensor model.layers.0.mlp.experts.2.up_proj.weight: dtype is "
                                 "F32, but BF16 in model.layers.0.mlp.experts.0.gate_proj.weight, and the experts of "
                                 "a layer must have one");
}

TEST_F(HuggingFaceReaderTest, RefusesDtypesThatAreNoWeights) {
  for (DType dtype : {DType::kF64, DType::kI64, DType::kI32, DType::kU8}) {
    ModelFolder folder = make_model_folder(tiny_model());
    ModelFolder::Tensor& tensor = folder.tensor("lm_head.weight");
    tensor.dtype = dtype;
    tensor.bytes = std::string(tensor.bytes.size() / 2 * size_of(dtype), '\0');
    EXPECT_EQ(refusal(folder), concat(path("m"), "/model.safetensors: tensor lm_head.weight: dtype is ", name_of(dtype),
                                      ", expected BF16, F16 or F32"));
  }
}

TEST_F(HuggingFaceReaderTest, FindsNumbersThatAreNotFinite) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    DType dtype;
    std::string bits;
    float value;
  };
  const auto bytes = [](auto bits) { return std::string(reinterpret_cast<const char*>(&bits), sizeof bits); };
  const Case cases[] = {{DType::kF32, bytes(nan), nan},
                        {DType::kF32, bytes(-inf), -inf},
                        {DType::kF32, bytes(uint32_t{0x7f800001}), nan},
                        {DType::kBF16, bytes(uint16_t{0x7f80}), inf},
                        {DType::kBF16, bytes(uint16_t{0xff81}), nan},
                        {DType::kF16, bytes(uint16_t{0xfc00}), -inf},
                        {DType::kF16, bytes(uint16_t{0x7c01}), nan}};
  const std::string name = "model.layers.1.mlp.experts.3.up_proj.weight";  // (6, 8)
  for (const Case& c : cases)
    for (int64_t at : {0, 21, 47}) {
      ModelFolder folder = make_model_folder(tiny_model(), c.dtype);
      const auto size = static_cast<size_t>(size_of(c.dtype));
      folder.tensor(name).bytes.replace(at * size, size, c.bits);
      folder.write(path("m"));
      const HuggingFaceReader reader(path("m")), allowing(path("m"), NonFinite::kAllow);
      for (const Parameter& p : reader.parameters()) {
        std::vector<float> out(p.shape.numel());
        Tensor tensor = Tensor::of(out.data(), {p.shape.numel()});
        const auto message = message_of<CheckpointError>([&] { reader.read_weights(p, 0, p.shape.numel(), tensor); });
        if (p.name != "model.layers.1.mlp.experts.gate_up_proj") {
          EXPECT_EQ(message, "") << p.name;
          continue;
        }
        EXPECT_EQ(message, concat(path("m"), "/model.safetensors: tensor ", name, ": element (", at / 8, ", ", at % 8,
                                  ") is not finite"));
        allowing.read_weights(p, 0, p.shape.numel(), tensor);
        const float found = out[(3 * 12 + 6) * 8 + at];
        if (std::isnan(c.value)) EXPECT_TRUE(std::isnan(found));
        else EXPECT_EQ(found, c.value);
      }
    }
}

// The largest finite numbers pass.
TEST_F(HuggingFaceReaderTest, TakesTheLargestNumbers) {
  ModelFolder folder = make_model_folder(tiny_model());
  const uint16_t largest = 0x7f7f;
  folder.tensor("lm_head.weight").bytes.replace(0, 2, reinterpret_cast<const char*>(&largest), 2);
  folder.write(path("m"));
  const HuggingFaceReader reader(path("m"));
  float out = 0;
  for (const Parameter& p : reader.parameters())
    if (p.name == "lm_head.weight") reader.read_weights(p, 0, 1, Tensor::of(&out, {1}));
  EXPECT_EQ(out, 0x1.fep127f);
}

TEST_F(HuggingFaceReaderTest, RefusesNormsAroundTheWrongNumber) {
  enum class Norms { kZeroCentred, kGated };
  // The weights of these norms are moved, and brought nearer to each other.
  const auto moved = [](Norms norms, float by) {
    ModelFolder folder = make_model_folder(tiny_model(), DType::kF32);
    for (ModelFolder::Tensor& t : folder.tensors) {
      const Norms kind = t.name.ends_with("linear_attn.norm.weight") ? Norms::kGated : Norms::kZeroCentred;
      if (t.name.find("norm.weight") == std::string::npos || kind != norms) continue;
      for (size_t i = 0; i < t.bytes.size(); i += 4) {
        float value = 0;
        std::memcpy(&value, &t.bytes[i], 4);
        value = value / 4 + by;
        std::memcpy(&t.bytes[i], &value, 4);
      }
    }
    return folder;
  };
  EXPECT_EQ(refusal(moved(Norms::kZeroCentred, 0)), "");
  expect_contains(refusal(moved(Norms::kZeroCentred, 1)), "stored as 1 + w, so 1 must be subtracted");
  EXPECT_EQ(refusal(moved(Norms::kGated, 0.75f)), "");
  expect_contains(refusal(moved(Norms::kGated, -0.25f)), "this norm is a plain scale, so 1 must be added");
}

}  // namespace
}  // namespace braid
