#include "trainer/huggingface/import.h"

#include <limits>

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class ImportTest : public FolderTest {
 protected:
  void import_folder(const ModelFolder& model, int64_t max_file_bytes = kDataFileBytes,
                     NonFinite non_finite = NonFinite::kRefuse) {
    model.write(path("hf"));
    import_model(HuggingFaceReader(path("hf"), non_finite), path("ckpt"), max_file_bytes);
  }

  // The checkpoint holds the weights of the folders of these tests, in this dtype, and nothing else.
  void expect_weights(bool with_mtp, DType dtype) {
    const CheckpointReader reader(path("ckpt"));
    const auto table = table_of(tiny_model(), with_mtp);
    EXPECT_EQ(reader.tensors().size(), table.size());
    for (const Parameter& p : table) {
      const auto* stored = reader.find("weights/" + p.name);
      ASSERT_NE(stored, nullptr) << p.name;
      EXPECT_EQ(stored->dtype, dtype) << p.name;
      EXPECT_EQ(stored->shape, p.shape) << p.name;
      std::vector<float> weights(p.shape.numel());
      reader.read_weights(p, 0, p.shape.numel(), Tensor::of(weights.data(), p.shape));
      for (int64_t i = 0; i < p.shape.numel(); ++i) ASSERT_EQ(weights[i], weight_of(p, i)) << p.name << ' ' << i;
    }
  }
};

TEST_F(ImportTest, KeepsWeightsAndDtypeAndBothExpertLayoutsBecomeOne) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const ExpertLayout layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused}) {
      for (const bool with_mtp : {false, true}) {
        import_folder(make_model_folder(tiny_model(), dtype, with_mtp, layout));
        expect_weights(with_mtp, dtype);
        fs::remove_all(path("ckpt"));
      }
    }
  }
}

TEST_F(ImportTest, HalfPrecisionBecomesSinglePrecision) {
  import_folder(make_model_folder(tiny_model(), DType::kF16));
  expect_weights(false, DType::kF32);
}

TEST_F(ImportTest, ReadsShards) {
  make_model_folder(tiny_model(), DType::kBF16, true).write_sharded(path("hf"));
  import_model(HuggingFaceReader(path("hf")), path("ckpt"));
  expect_weights(true, DType::kBF16);
}

TEST_F(ImportTest, TheConfigIsThatOfTheFolder) {
  for (const bool with_mtp : {false, true}) {
    import_folder(make_model_folder(tiny_model(), DType::kF32, with_mtp));
    const CheckpointReader reader(path("ckpt"));
    EXPECT_EQ(reader.info().step, 0);
    EXPECT_EQ(reader.info().tokens, 0);
    EXPECT_EQ(reader.info().parameter_table, format_parameter_table(table_of(tiny_model(), with_mtp)));
    RunConfig expected;
    expected.model = tiny_model();
    expected.mtp.depth = with_mtp ? 1 : 0;
    expected.train.seq_length = 4096;
    EXPECT_EQ(reader.info().config_yaml, to_yaml(expected));
    EXPECT_NO_THROW(check_model_config(read_config_text(reader.info().config_yaml, "")));
    fs::remove_all(path("ckpt"));
  }
}

TEST_F(ImportTest, DataFilesAreShortAndLongTensorsAreCut) {
  const int64_t max_bytes = 200;  // some tensors fit together, others need four files
  import_folder(make_model_folder(tiny_model(), DType::kBF16, true), max_bytes);
  expect_weights(true, DType::kBF16);
  CheckpointReader(path("ckpt")).verify();
  int64_t files = 0, cut = 0, together = 0;
  for (const auto& entry : fs::directory_iterator(path("ckpt"))) {
    if (entry.path().filename() == kManifestName) continue;
    const SafetensorsHeader header = read_safetensors_header(entry.path().string());
    EXPECT_LE(static_cast<int64_t>(entry.file_size()) - header.data_offset, max_bytes) << entry.path();
    ++files;
    together += header.entries.size() > 1;
    for (const auto& [name, tensor] : header.entries) cut += name.find('@') != std::string::npos;
  }
  EXPECT_TRUE(fs::exists(path("ckpt/weights-00000.safetensors")));
  EXPECT_GT(files, 10);
  EXPECT_GT(cut, 20);
  EXPECT_GT(together, 2);
}

TEST_F(ImportTest, WeightsThatAreNotFiniteLeaveNothingUnlessAllowed) {
  ModelFolder model = make_model_folder(tiny_model(), DType::kF32);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(model.tensor("lm_head.weight").bytes.data() + 4 * 9, &nan, sizeof nan);  // towards the end
  const std::string message = message_of<CheckpointError>([&] { import_folder(model); });
  expect_contains(message, "tensor lm_head.weight: element (1, 1) is not finite");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "only the source may be there";
  import_folder(model, kDataFileBytes, NonFinite::kAllow);
  CheckpointReader(path("ckpt")).verify();
}

TEST_F(ImportTest, ANameThatIsTakenIsRefusedAndAnEmptyFolderIsNot) {
  const ModelFolder model = make_model_folder(tiny_model());
  fs::create_directory(path("ckpt"));
  write_bytes(path("ckpt/mine"), "precious");
  expect_contains(message_of<IoError>([&] { import_folder(model); }), path("ckpt") + ": is there already");
  EXPECT_EQ(bytes_of(path("ckpt/mine")), "precious");
  fs::remove(path("ckpt/mine"));
  import_folder(model);
  expect_weights(false, DType::kBF16);
}

}  // namespace
}  // namespace braid
