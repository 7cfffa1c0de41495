#include "trainer/checkpoint/reshard.h"

#include <filesystem>

#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/checkpoint_scan.h"
#include "trainer/checkpoint/manifest.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class ReshardTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();

  std::string save(const std::vector<CheckpointSlice>& slices) {
    CheckpointInfo info;
    info.step = 3;
    info.tokens = 77;
    info.config_yaml = "run: {}\n";
    return save_checkpoint(ctx_, *world_, path("run"), info, slices);
  }
};

TEST_F(ReshardTest, TheStateIsTheSameInEqualFiles) {
  const Tensor a = random_normal({1500000}, DType::kF32, 1), b = random_f64({301}, 2),
               c = random_normal({7, 11}, DType::kF32, 3);
  Tensor counts = tensor_of<int64_t>({1, 2, 3}, {3}), none = zeros({0}, DType::kF32);
  const std::string saved = save({{"b", {301}, 0, 301, b},
                                  {"a", {1500000}, 0, 1000001, a.rows(0, 1000001)},
                                  {"a", {1500000}, 1000001, 1500000, a.rows(1000001, 1500000)},
                                  {"none", {3, 0}, 0, 0, none},
                                  {"c", {7, 11}, 0, 77, c},
                                  {"counts", {3}, 0, 3, counts}});
  const CheckpointReader original(saved);
  for (const int64_t ranks : {1, 2, 3, 16, 1000}) {
    const std::string to = path(concat("to-", ranks));
    reshard_checkpoint(original, to, ranks);
    const CheckpointReader resharded(to);
    resharded.verify();
    EXPECT_TRUE(compare_checkpoints(original, resharded).empty());
    EXPECT_EQ(resharded.tensors().size(), 5u);
    EXPECT_EQ(resharded.info().num_ranks, ranks);
    EXPECT_EQ(resharded.info().tokens, 77);
    EXPECT_EQ(resharded.info().config_yaml, "run: {}\n");
    const Manifest manifest = Manifest::parse(bytes_of(to + "/MANIFEST.json"), to);
    ASSERT_EQ(std::ssize(manifest.files), ranks);
    std::map<std::string, int64_t> data_bytes;
    for (const auto& [name, tensor] : manifest.tensors)
      for (const auto& e : tensor.extents) data_bytes[e.file] += (e.end - e.begin) * size_of(tensor.dtype);
    const int64_t total = a.bytes() + b.bytes() + c.bytes() + counts.bytes();
    for (const auto& [file, bytes] : data_bytes) {
      EXPECT_LE(bytes, (total + ranks - 1) / ranks + 8) << file;
      if (file != manifest.files.back().name) {
        EXPECT_GE(bytes, total / ranks - 16) << file;
      }
    }
  }
}

TEST_F(ReshardTest, DamageIsNotCopied) {
  const Tensor a = random_normal({500}, DType::kF32, 1);
  const std::string saved = save({{"a", {500}, 0, 500, a}}), file = saved + "/rank-00000.safetensors";
  std::string bytes = bytes_of(file);
  const CheckpointReader reader(saved);
  bytes[bytes.size() - 900] ^= 2;
  write_bytes(file, bytes);
  expect_contains(message_of<CheckpointError>([&] { reshard_checkpoint(CheckpointReader(saved), path("to"), 2); }),
                  file + ": tensor a: ");
  EXPECT_FALSE(fs::exists(path("to")));
  EXPECT_FALSE(fs::exists(path(".tmp-to")));
  fs::create_directory(path("full"));
  write_bytes(path("full/x"), "x");
  expect_contains(message_of<IoError>([&] { reshard_checkpoint(reader, path("full"), 2); }), "is not empty");
}

}  // namespace
}  // namespace braid
