#include "trainer/huggingface/huggingface_writer.h"

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/huggingface/huggingface_reader.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class HuggingFaceWriterTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    make_model_folder(tiny_model(), DType::kBF16, true).write(path("hf"));
    source_ = std::make_unique<HuggingFaceReader>(path("hf"));
    for (const Parameter& p : source_->parameters()) parameters_.push_back({p, DType::kBF16});
  }
  void write(int64_t max_file_bytes) {
    write_model_folder(*source_, source_->config(), parameters_, path("out"), max_file_bytes);
  }

  std::unique_ptr<HuggingFaceReader> source_;
  std::vector<TypedParameter> parameters_;
};

TEST_F(HuggingFaceWriterTest, ALongModelBecomesShardsWithAnIndex) {
  const int64_t max_bytes = 7000;
  write(max_bytes);
  EXPECT_FALSE(fs::exists(path("out/model.safetensors")));
  const int64_t shards = std::distance(fs::directory_iterator(path("out")), {}) - 2;  // beside index and config
  ASSERT_GT(shards, 3);
  ASSERT_LT(shards, 10);
  std::string in_order;
  for (int64_t shard = 1; shard <= shards; ++shard) {
    const std::string file = path(concat("out/model-0000", shard, "-of-0000", shards, ".safetensors"));
    EXPECT_LE(static_cast<int64_t>(fs::file_size(file)), max_bytes);
    const SafetensorsHeader header = read_safetensors_header(file);
    EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
    in_order += bytes_of(file).substr(header.data_offset);
  }
  const std::string whole = bytes_of(path("hf/model.safetensors"));
  EXPECT_TRUE(in_order == whole.substr(read_safetensors_header(path("hf/model.safetensors")).data_offset));

  // The reader compares index and files in every way there is.
  const HuggingFaceReader again(path("out"));
  EXPECT_EQ(again.total_bytes(), source_->total_bytes());
  expect_contains(bytes_of(path("out/model.safetensors.index.json")),
                  concat("\"metadata\": {\"total_size\": ", source_->total_bytes(), "}"));
  for (const Parameter& p : again.parameters()) {
    std::vector<float> weights(p.shape.numel());
    again.read_weights(p, 0, p.shape.numel(), Tensor::of(weights.data(), p.shape));
    for (int64_t i = 0; i < p.shape.numel(); ++i) ASSERT_EQ(weights[i], weight_of(p, i)) << p.name << ' ' << i;
  }
}

TEST_F(HuggingFaceWriterTest, AModelThatFitsIsOneFile) {
  write(static_cast<int64_t>(bytes_of(path("hf/model.safetensors")).size()) + 192 * 1000);
  EXPECT_EQ(bytes_of(path("out/model.safetensors")), bytes_of(path("hf/model.safetensors")));
  EXPECT_FALSE(fs::exists(path("out/model.safetensors.index.json")));
}

TEST_F(HuggingFaceWriterTest, ATensorLongerThanAFileHasOneForItself) {
  write(100);
  EXPECT_EQ(HuggingFaceReader(path("out")).total_bytes(), source_->total_bytes());
}

TEST_F(HuggingFaceWriterTest, ANameThatIsTakenIsRefused) {
  write(kModelFileBytes);
  expect_contains(message_of<IoError>([&] { write(kModelFileBytes); }), path("out") + ": is there already");
}

}  // namespace
}  // namespace braid
