#include "trainer/huggingface/tensor_folder.h"

#include "tests/trainer/huggingface/model_folder_testing.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class TensorFolderTest : public FolderTest {
 protected:
  std::string file(const std::string& tensor, const std::string& data) {
    return make_safetensors_header({{tensor, DType::kU8, {static_cast<int64_t>(data.size())}}}, {}) + data;
  }
  std::string refusal() {
    return message_of<CheckpointError>([&] { open_tensor_folder(folder_); });
  }
};

TEST_F(TensorFolderTest, OpensASingleFile) {
  write_bytes(path("model.safetensors"), file("a", "xyz"));
  write_bytes(path("other.safetensors"), "not looked at");
  const TensorFolder opened = open_tensor_folder(folder_);
  ASSERT_EQ(opened.files.size(), 1u);
  ASSERT_EQ(opened.tensors.size(), 1u);
  const FolderTensor& a = opened.tensors.at("a");
  EXPECT_EQ(a.bytes, 3);
  EXPECT_EQ(a.shape, (std::vector<int64_t>{3}));
  std::string data(3, ' ');
  opened.files[a.file].read(data.data(), 3, a.position);
  EXPECT_EQ(data, "xyz");
}

// As transformers does, whatever the index says.
TEST_F(TensorFolderTest, PrefersTheSingleFile) {
  write_bytes(path("model.safetensors"), file("a", "xyz"));
  write_bytes(path("model.safetensors.index.json"), "broken");
  EXPECT_EQ(open_tensor_folder(folder_).tensors.size(), 1u);
}

TEST_F(TensorFolderTest, FollowsTheIndex) {
  write_bytes(path("x"), file("b", "bb"));
  write_bytes(path("y"), file("a", "a"));
  for (const char* metadata :
       {R"("metadata":{"total_size":3},)", R"("metadata":{"total_parameters":7, "by":["x",{}]},)",
        R"("more":[[{"weight_map":"x"}], null, 1.5, -3, true], )", R"("metadata":{},)", ""}) {
    write_bytes(path("model.safetensors.index.json"), concat("{", metadata, R"("weight_map":{"a":"y","b":"x"}})"));
    const TensorFolder opened = open_tensor_folder(folder_);
    ASSERT_EQ(opened.files.size(), 2u);
    EXPECT_EQ(opened.files[opened.tensors.at("a").file].path(), path("y"));
    EXPECT_EQ(opened.files[opened.tensors.at("b").file].path(), path("x"));
  }
}

// ~/.cache/huggingface/hub/models--OWNER--NAME/snapshots/REVISION/model.safetensors -> ../../blobs/DIGEST
TEST_F(TensorFolderTest, FollowsLinksOfAHubCache) {
  fs::create_directories(path("models--a--b/snapshots/1"));
  fs::create_directories(path("models--a--b/blobs"));
  const std::string snapshot = path("models--a--b/snapshots/1");
  write_bytes(path("models--a--b/blobs/c0ffee"), file("a", "xyz"));
  fs::create_symlink("../../blobs/c0ffee", snapshot + "/model.safetensors");
  EXPECT_EQ(open_tensor_folder(snapshot).tensors.size(), 1u);
  EXPECT_EQ(open_tensor_folder(snapshot + "/").tensors.size(), 1u);
}

TEST_F(TensorFolderTest, FollowsLinksInsideTheFolder) {
  write_bytes(path("data"), file("a", "xyz"));
  fs::create_symlink("data", path("model.safetensors"));
  fs::create_directory_symlink(folder_, folder_ + ".link");
  EXPECT_EQ(open_tensor_folder(folder_).tensors.size(), 1u);
  EXPECT_EQ(open_tensor_folder(folder_ + ".link").tensors.size(), 1u);
  fs::remove(folder_ + ".link");
}

TEST_F(TensorFolderTest, RefusesLinksThatLeave) {
  fs::create_directories(path("in"));
  fs::create_directories(path("blobs"));
  write_bytes(path("outside"), file("a", "xyz"));
  write_bytes(path("blobs/b"), file("a", "xyz"));
  for (const char* target : {"../outside", "../blobs/b"}) {
    fs::remove(path("in/model.safetensors"));
    fs::create_symlink(target, path("in/model.safetensors"));
    expect_contains(message_of<CheckpointError>([&] { open_tensor_folder(path("in")); }),
                    "in/model.safetensors: is a link that leaves the folder, to ");
  }
  fs::remove(path("in/model.safetensors"));
  fs::create_symlink("nothing", path("in/model.safetensors"));
  EXPECT_EQ(message_of<CheckpointError>([&] { open_tensor_folder(path("in")); }),
            path("in/model.safetensors") + ": is missing");
}

TEST_F(TensorFolderTest, RefusesAFolderWithoutWeights) {
  const std::string neither = folder_ + ": holds neither model.safetensors nor model.safetensors.index.json";
  EXPECT_EQ(refusal(), neither);
  std::ofstream(path("pytorch_model.bin")) << "x";
  EXPECT_EQ(refusal(),
            neither + ", only files like pytorch_model.bin; save_pretrained of transformers writes safetensors");
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
    std::ofstream(path(name)) << "x";
  EXPECT_EQ(refusal(),
            neither + ", which says what is in the 2 *.safetensors there; it comes with the model, download it too");
}

TEST(NameList, HoldsTheFirstTwenty) {
  NameList names;
  EXPECT_EQ(names.text(), "");
  for (int i = 1; i <= 20; ++i) names.add("a\n", " of ", i);
  EXPECT_TRUE(names.text().starts_with(R"("a\n" of 1, "a\n" of 2, )")) << names.text();
  EXPECT_TRUE(names.text().ends_with(R"("a\n" of 19, "a\n" of 20)")) << names.text();
  for (int i = 21; i <= 75; ++i) names.add("b");
  EXPECT_EQ(names.count(), 75);
  EXPECT_TRUE(names.text().ends_with(R"("a\n" of 20 and 55 more)")) << names.text();
}

}  // namespace
}  // namespace braid
