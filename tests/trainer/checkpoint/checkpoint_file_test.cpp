#include "trainer/checkpoint/checkpoint_file.h"

#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {
namespace {

using namespace braid::testing;

class CheckpointFileTest : public FolderTest {};

TEST_F(CheckpointFileTest, PiecesOfAnySizeMakeTheSameFile) {
  const std::string data(3 * 5 * 4 + 4 * 8, 'x');
  std::string first, digest;
  for (const size_t step : {data.size(), size_t{1}, size_t{7}}) {
    CheckpointFile file(
        folder_, "weights-00000.safetensors",
        {{"a", DType::kF32, {3, 5}, 0, 15}, {"none", DType::kF32, {7}, 2, 2}, {"b", DType::kF64, {9}, 5, 9}});
    for (size_t at = 0; at < data.size(); at += step)
      file.write(data.data() + at, static_cast<int64_t>(std::min(step, data.size() - at)));
    const Manifest part = file.finish();
    const std::string bytes = bytes_of(path("weights-00000.safetensors"));
    const SafetensorsHeader header = read_safetensors_header(path("weights-00000.safetensors"));
    ASSERT_EQ(part.files.size(), 1u);
    EXPECT_EQ(part.files[0].name, "weights-00000.safetensors");
    EXPECT_EQ(part.files[0].bytes, static_cast<int64_t>(bytes.size()));
    EXPECT_EQ(part.files[0].sha256, sha256(bytes));
    EXPECT_EQ(header.entries.size(), 2u);
    EXPECT_EQ(header.entries.at("a").shape, (std::vector<int64_t>{3, 5}));
    EXPECT_EQ(header.entries.at("b@5").shape, (std::vector<int64_t>{4}));
    EXPECT_EQ(part.tensors.at("b").extents[0].offset, header.data_offset + header.entries.at("b@5").begin);
    EXPECT_EQ(part.tensors.at("b").extents[0].begin, 5);
    EXPECT_TRUE(part.tensors.at("none").extents.empty());
    EXPECT_EQ(bytes.substr(header.data_offset), data);
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes, first);
  }
}

}  // namespace
}  // namespace braid
