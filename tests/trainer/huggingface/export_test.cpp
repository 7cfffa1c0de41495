#include "trainer/huggingface/export.h"

#include <cmath>

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/config/config_reader.h"
#include "trainer/huggingface/import.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class ExportTest : public FolderTest {
 protected:
  void export_checkpoint(std::optional<DType> dtype = std::nullopt) {
    fs::remove_all(path("out"));
    export_model(open_checkpoint(path("ckpt")), path("out"), dtype);
  }

  // A checkpoint like those of a training run on two ranks: every tensor cut at an odd place, moments beside them.
  // Weights are `value` of their index in `dtype`.
  template <class T>
  void save_trained(const std::function<double(int64_t)>& value, const std::string& without = "") {
    RunConfig config;
    config.model = tiny_model();
    CheckpointInfo info;
    info.step = 7;
    info.config_yaml = to_yaml(config);
    info.num_ranks = 2;
    ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
      std::vector<std::vector<T>> memory;
      std::vector<CheckpointSlice> slices;
      for (const Parameter& p : table_of(config.model, true)) {
        const int64_t numel = p.shape.numel(), cut = numel / 3 + 1;
        const int64_t begin = world.rank() == 0 ? 0 : cut, end = world.rank() == 0 ? cut : numel;
        memory.emplace_back();
        for (int64_t i = begin; i < end; ++i) memory.back().push_back(static_cast<T>(value(i)));
        const Tensor data = Tensor::of(memory.back().data(), {end - begin});
        if (p.name != without) slices.push_back({"weights/" + p.name, p.shape, begin, end, data});
        slices.push_back({"exp_avg/" + p.name, p.shape, begin, end, data});
      }
      save_checkpoint(ctx, world, path("ckpt/checkpoints"), info, slices);
    });
  }
};

TEST_F(ExportTest, WhatWasImportedComesOutByteForByte) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const bool with_mtp : {false, true}) {
      const ModelFolder per_expert = make_model_folder(tiny_model(), dtype, with_mtp);
      for (const ExpertLayout layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused}) {
        for (const int64_t max_file_bytes : {kDataFileBytes, int64_t{500}}) {
          make_model_folder(tiny_model(), dtype, with_mtp, layout).write(path("hf"));
          import_model(HuggingFaceReader(path("hf")), path("ckpt"), max_file_bytes);
          export_checkpoint();
          EXPECT_EQ(bytes_of(path("out/model.safetensors")), per_expert.file());
          EXPECT_EQ(bytes_of(path("out/config.json")), per_expert.config);
          EXPECT_EQ(std::distance(fs::directory_iterator(path("out")), {}), 2);
          fs::remove_all(path("ckpt"));
        }
      }
    }
  }
}

TEST_F(ExportTest, TensorsOfDifferentDtypesKeepThem) {
  ModelFolder model = make_model_folder(tiny_model(), DType::kBF16);
  const ModelFolder wide = make_model_folder(tiny_model(), DType::kF32);
  for (ModelFolder::Tensor& tensor : model.tensors)
    for (const ModelFolder::Tensor& other : wide.tensors)
      if (tensor.name == other.name && tensor.name.ends_with("A_log")) tensor = other;
  model.write(path("hf"));
  import_model(HuggingFaceReader(path("hf")), path("ckpt"));
  export_checkpoint();
  EXPECT_EQ(bytes_of(path("out/model.safetensors")), model.file());
  export_checkpoint(DType::kF32);
  EXPECT_EQ(bytes_of(path("out/model.safetensors")), wide.file());
}

TEST_F(ExportTest, TrainedWeightsOfAnyLayoutAreConvertedToNearestEven) {
  // Halfway between two neighbours, a little above, and a number with all bits used.
  const std::vector<double> kinds = {1 + std::ldexp(1, -8), 1 + std::ldexp(3, -8), 1 + std::ldexp(1, -8) + 1e-6,
                                     1 / 3.};
  const std::vector<uint16_t> rounded = {0x3f80, 0x3f82, 0x3f81, 0x3eab};
  save_trained<float>([&](int64_t i) { return (i % 8 < 4 ? 1 : -1) * kinds[i % 4]; });
  export_checkpoint(DType::kBF16);
  const SafetensorsHeader header = read_safetensors_header(path("out/model.safetensors"));
  const std::string bytes = bytes_of(path("out/model.safetensors"));
  for (const auto& [name, tensor] : header.entries) {
    EXPECT_EQ(tensor.dtype, DType::kBF16);
    if (name.find(".experts.") != std::string::npos) continue;  // whose first index is not 0
    for (int64_t i = 0; i < (tensor.end - tensor.begin) / 2; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + header.data_offset + tensor.begin + 2 * i, 2);
      ASSERT_EQ(bits, rounded[i % 4] | (i % 8 < 4 ? 0 : 0x8000)) << name << ' ' << i;
    }
  }
  export_checkpoint();
  EXPECT_EQ(read_safetensors_header(path("out/model.safetensors")).entries.begin()->second.dtype, DType::kF32);
}

TEST_F(ExportTest, ExpertsAreCutInTheirOrder) {
  save_trained<float>([](int64_t i) { return static_cast<double>(i); });
  export_checkpoint();
  const SafetensorsHeader header = read_safetensors_header(path("out/model.safetensors"));
  const std::string bytes = bytes_of(path("out/model.safetensors"));
  const ModelConfig c = tiny_model();
  const int64_t FC = c.moe_intermediate_size * c.hidden_size;
  for (int64_t e = 0; e < c.num_experts; ++e) {
    const std::string expert = concat("mtp.layers.0.mlp.experts.", e, ".");
    for (const auto& [name, first] :
         {std::pair{"gate_proj", 2 * e * FC}, {"up_proj", (2 * e + 1) * FC}, {"down_proj", e * FC}}) {
      const SafetensorsEntry& tensor = header.entries.at(expert + name + ".weight");
      EXPECT_EQ(tensor.end - tensor.begin, 4 * FC);
      float number = 0;
      std::memcpy(&number, bytes.data() + header.data_offset + tensor.begin, 4);
      EXPECT_EQ(number, static_cast<float>(first)) << expert << name;
    }
  }
}

TEST_F(ExportTest, DoublePrecisionMustBeConverted) {
  save_trained<double>([](int64_t) { return 0.1; });
  const std::string message = message_of<CheckpointError>([&] { export_checkpoint(); });
  expect_contains(message, "tensor weights/model.embed_tokens.weight is F64");
  expect_contains(message, "choose --dtype bf16 or fp32");
  EXPECT_FALSE(fs::exists(path("out")));
  export_checkpoint(DType::kF32);
  float number = 0;
  const std::string bytes = bytes_of(path("out/model.safetensors"));
  std::memcpy(&number, bytes.data() + bytes.size() - 4, 4);
  EXPECT_EQ(number, 0.1f);
}

TEST_F(ExportTest, AMissingTensorIsNamed) {
  save_trained<float>([](int64_t) { return 1; }, "mtp.fc.weight");
  for (const std::optional<DType> dtype : {std::optional<DType>(), {DType::kBF16}})
    expect_contains(message_of<CheckpointError>([&] { export_checkpoint(dtype); }),
                    "holds no tensor weights/mtp.fc.weight");
  EXPECT_FALSE(fs::exists(path("out")));
}

TEST_F(ExportTest, ADamagedCheckpointLeavesNothing) {
  make_model_folder(tiny_model()).write(path("hf"));
  import_model(HuggingFaceReader(path("hf")), path("ckpt"));
  std::string bytes = bytes_of(path("ckpt/weights-00000.safetensors"));
  bytes.back() ^= 1;
  write_bytes(path("ckpt/weights-00000.safetensors"), bytes);
  expect_contains(message_of<CheckpointError>([&] { export_checkpoint(); }),
                  "tensor weights/lm_head.weight: elements 0 to 192: do not match their digest");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 2) << "only source and checkpoint may be there";
}

}  // namespace
}  // namespace braid
