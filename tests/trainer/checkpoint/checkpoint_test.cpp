#include "trainer/checkpoint/checkpoint.h"

#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "tests/testing.h"
#include "trainer/checkpoint/manifest.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::string folder_ = ::testing::TempDir() + "braid_checkpoint_test";
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();
  Tensor matrix_ = random_normal({3, 5}, DType::kF32, 1), vector_ = random_f64({7}, 2);
  Tensor counts_ = tensor_of<int64_t>({1, 2, 3, 4}, {2, 2});

  void SetUp() override { fs::remove_all(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  CheckpointInfo info(int64_t step) {
    CheckpointInfo info;
    info.step = step;
    info.tokens = 1000 * step;
    info.config_yaml = "run: {steps: 3}\n# \"quoted\" and ünïcode\n";
    info.build_id = "test build";
    info.data_digest = "abc";
    info.parameter_table = "table\n";
    info.num_ranks = 1;
    return info;
  }
  // The matrix in three pieces that ignore its rows, the rest whole.
  std::vector<CheckpointSlice> slices() {
    Tensor flat = matrix_.view({15});
    return {{"weights/matrix", {3, 5}, 7, 15, flat.rows(7, 15)},
            {"weights/matrix", {3, 5}, 0, 4, flat.rows(0, 4)},
            {"weights/matrix", {3, 5}, 4, 7, flat.rows(4, 7)},
            {"exp_avg/vector", {7}, 0, 7, vector_},
            {"balance/counts", {2, 2}, 0, 4, counts_}};
  }
  std::string save(int64_t step) { return save_checkpoint(ctx_, *world_, folder_, info(step), slices()); }
  void expect_refused(const std::string& path, const std::string& what) {
    try {
      CheckpointReader(path).verify();
      FAIL() << "accepted, although " << what;
    } catch (const CheckpointError& e) {
      EXPECT_NE(std::string(e.what()).find(folder_), std::string::npos) << "names the file: " << e.what();
    }
  }
};

TEST_F(CheckpointTest, GivesBackTheSameBits) {
  const CheckpointReader reader(save(12));
  EXPECT_EQ(fs::path(reader.path()).filename(), "step-000000012");
  EXPECT_EQ(reader.info().step, 12);
  EXPECT_EQ(reader.info().tokens, 12000);
  EXPECT_EQ(reader.info().config_yaml, info(12).config_yaml);
  EXPECT_EQ(reader.info().data_digest, "abc");
  ASSERT_EQ(reader.tensors().size(), 3u);
  EXPECT_TRUE(reader.contains("weights/matrix"));
  Tensor matrix = zeros({3, 5}, DType::kF32), vector = zeros_f64({7}), counts = zeros({2, 2}, DType::kI64);
  CheckpointSlice a{"weights/matrix", {3, 5}, 0, 15, matrix}, b{"exp_avg/vector", {7}, 0, 7, vector};
  CheckpointSlice c{"balance/counts", {2, 2}, 0, 4, counts};
  for (auto* slice : {&a, &b, &c}) reader.read(*slice);
  expect_same_bits(matrix, matrix_);
  expect_same_bits(vector, vector_);
  expect_same_bits(counts, counts_);
}

TEST_F(CheckpointTest, ReadsEveryRangeAcrossPieces) {
  const CheckpointReader reader(save(1));
  for (int64_t begin = 0; begin <= 15; ++begin)
    for (int64_t end = begin; end <= 15; ++end) {
      Tensor part = zeros({std::max<int64_t>(1, end - begin)}, DType::kF32);
      CheckpointSlice slice{"weights/matrix", {3, 5}, begin, end, part};
      reader.read(slice);
      EXPECT_EQ(std::memcmp(part.raw(), matrix_.data<float>() + begin, (end - begin) * sizeof(float)), 0);
    }
}

TEST_F(CheckpointTest, RefusesWhatDoesNotFit) {
  const CheckpointReader reader(save(1));
  Tensor t = zeros({15}, DType::kF32), d = zeros_f64({15});
  CheckpointSlice absent{"weights/other", {15}, 0, 15, t}, shape{"weights/matrix", {5, 3}, 0, 15, t};
  CheckpointSlice dtype{"weights/matrix", {3, 5}, 0, 15, d};
  EXPECT_THROW(reader.read(absent), CheckpointError);
  EXPECT_THROW(reader.read(shape), CheckpointError);
  EXPECT_THROW(reader.read(dtype), CheckpointError);
}

TEST_F(CheckpointTest, RefusesToCommitATensorThatIsNotCoveredExactlyOnce) {
  save(1);
  auto pieces = slices();
  pieces.erase(pieces.begin() + 2);
  EXPECT_THROW(save_checkpoint(ctx_, *world_, folder_, info(2), pieces), CheckpointError);
  pieces = slices();
  pieces[2].begin = 3;
  pieces[2].data = matrix_.view({15}).rows(3, 7);
  EXPECT_THROW(save_checkpoint(ctx_, *world_, folder_, info(2), pieces), CheckpointError);
  ASSERT_EQ(list_checkpoints(folder_).size(), 1u);
  EXPECT_EQ(list_checkpoints(folder_)[0].step, 1);
  EXPECT_FALSE(fs::exists(folder_ + "/.tmp-step-000000002"));
}

TEST_F(CheckpointTest, EveryTruncationIsDetected) {
  const std::string path = save(1);
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors"}) {
    const fs::path file = fs::path(path) / name;
    const std::string whole = bytes_of(file);
    for (size_t length = 0; length < whole.size(); length += 1 + whole.size() / 150) {
      std::ofstream(file, std::ios::binary) << whole.substr(0, length);
      expect_refused(path, concat(name, " was cut to ", length, " bytes"));
    }
    std::ofstream(file, std::ios::binary) << whole + "x";
    expect_refused(path, concat(name, " is one byte longer"));
    std::ofstream(file, std::ios::binary) << whole;
    CheckpointReader(path).verify();
  }
}

TEST_F(CheckpointTest, EveryFlippedBitIsDetected) {
  const std::string path = save(1);
  std::mt19937 random(7);
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors"}) {
    const fs::path file = fs::path(path) / name;
    const std::string whole = bytes_of(file);
    for (int trial = 0; trial < 500; ++trial) {
      std::string flipped = whole;
      const size_t bit = random() % (8 * whole.size());
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
      std::ofstream(file, std::ios::binary) << flipped;
      expect_refused(path, concat("bit ", bit, " of ", name, " was flipped"));
    }
    std::ofstream(file, std::ios::binary) << whole;
  }
}

TEST_F(CheckpointTest, RefusesFoldersAndFilesThatAreNotOnes) {
  expect_refused(folder_ + "/absent", "there is no such folder");
  const std::string path = save(1), shard = path + "/rank-00000.safetensors";
  fs::rename(shard, folder_ + "/elsewhere");
  expect_refused(path, "the shard is missing");
  fs::create_symlink(folder_ + "/elsewhere", shard);
  expect_refused(path, "the shard is a link");
  fs::remove(shard);
  fs::create_directory(shard);
  expect_refused(path, "the shard is a folder");
}

TEST_F(CheckpointTest, ManifestCannotPointOutsideItsFolder) {
  Manifest manifest;
  manifest.files = {{"../rank-00000.safetensors", 10, "00"}};
  EXPECT_THROW(Manifest::parse(manifest.to_text(), folder_ + "/MANIFEST.json"), CheckpointError);
  manifest.files = {{"rank-0000x.safetensors", 10, "00"}};
  EXPECT_THROW(Manifest::parse(manifest.to_text(), folder_ + "/MANIFEST.json"), CheckpointError);
  manifest.files = {{"rank-00003.safetensors", 10, "00"}};
  EXPECT_EQ(Manifest::parse(manifest.to_text(), "x").files[0].name, "rank-00003.safetensors");
}

TEST_F(CheckpointTest, ListsCommittedCheckpointsOnly) {
  save(10);
  save(2);
  save(300);
  fs::create_directories(folder_ + "/.tmp-step-000000400");
  fs::create_directories(folder_ + "/step-000000500");  // a folder without a manifest is no checkpoint
  fs::create_directories(folder_ + "/step-7");
  const auto entries = list_checkpoints(folder_);
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].step, 2);
  EXPECT_EQ(entries[2].step, 300);
  EXPECT_TRUE(list_checkpoints(folder_ + "/absent").empty());
  prune_checkpoints(folder_, 2);
  ASSERT_EQ(list_checkpoints(folder_).size(), 2u);
  EXPECT_EQ(list_checkpoints(folder_)[0].step, 10);
  EXPECT_FALSE(fs::exists(folder_ + "/.tmp-step-000000400"));
  prune_checkpoints(folder_, 0);
  EXPECT_EQ(list_checkpoints(folder_).size(), 2u);
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  save(5);
  vector_.data<double>()[3] = 42;
  const CheckpointReader reader(save(5));
  Tensor vector = zeros_f64({7});
  CheckpointSlice slice{"exp_avg/vector", {7}, 0, 7, vector};
  reader.read(slice);
  EXPECT_EQ(vector.data<double>()[3], 42);
  EXPECT_EQ(list_checkpoints(folder_).size(), 1u);
  EXPECT_FALSE(fs::exists(folder_ + "/.trash-step-000000005"));
}

// What a kill in the middle of a save leaves does not count, and does not disturb the next save.
TEST_F(CheckpointTest, LeftOversOfAKilledSaveDoNotMatter) {
  save(1);
  fs::create_directories(folder_ + "/.tmp-step-000000002");
  std::ofstream(folder_ + "/.tmp-step-000000002/rank-00000.safetensors.part") << "half";
  EXPECT_EQ(list_checkpoints(folder_).size(), 1u);
  CheckpointReader(save(2)).verify();
  EXPECT_EQ(list_checkpoints(folder_).size(), 2u);
}

TEST_F(CheckpointTest, AFullDiskLeavesTheOlderCheckpoint) {
  save(1);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 100;
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(save(2), IoError);
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_EQ(list_checkpoints(folder_).size(), 1u);
  CheckpointReader(list_checkpoints(folder_)[0].path).verify();
  EXPECT_FALSE(fs::exists(folder_ + "/.tmp-step-000000002"));
}

}  // namespace
}  // namespace braid
