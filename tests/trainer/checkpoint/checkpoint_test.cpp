#include "trainer/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <map>
#include <random>

#include "parallel/rank_text.h"
#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/run/run_folder.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class CheckpointTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();
  Tensor matrix_ = random_normal({3, 5}, DType::kF32, 1), vector_ = random_f64({7}, 2);
  Tensor counts_ = tensor_of<int64_t>({1, 2, 3, 4}, {2, 2}), half_ = poisoned({2, 1, 3}, DType::kBF16);
  Tensor none_ = zeros({0}, DType::kF32);

  static CheckpointInfo info(int64_t step, int64_t ranks = 1) {
    CheckpointInfo info;
    info.step = step;
    info.tokens = 1000 * step;
    info.config_yaml = "run: {steps: 3}\n# \"quoted\" and ünïcode\n";
    info.build_id = "test build";
    info.data_digest = "abc";
    info.parameter_table = "table\n";
    info.num_ranks = ranks;
    return info;
  }
  // The matrix in three pieces that ignore its rows, the rest whole.
  std::vector<CheckpointSlice> slices() const {
    Tensor flat = matrix_.view({15});
    return {{"weights/matrix", {3, 5}, 7, 15, flat.rows(7, 15)},
            {"weights/matrix", {3, 5}, 0, 4, flat.rows(0, 4)},
            {"weights/matrix", {3, 5}, 4, 7, flat.rows(4, 7)},
            {"exp_avg/vector", {7}, 0, 7, vector_},
            {"exp_avg/none", {7, 0}, 0, 0, none_},
            {"balance/counts", {2, 2}, 0, 4, counts_},
            {"half", {2, 1, 3}, 0, 6, half_}};
  }
  // Those slices dealt to `size` ranks in turn.
  std::vector<CheckpointSlice> slices_of_rank(int rank, int size) const {
    std::vector<CheckpointSlice> own;
    const auto all = slices();
    for (size_t i = static_cast<size_t>(rank); i < all.size(); i += static_cast<size_t>(size)) own.push_back(all[i]);
    return own;
  }
  std::string save(int64_t step) { return save_checkpoint(ctx_, *world_, folder_, info(step), slices()); }
  std::string save_from_ranks(int64_t step, int size) {
    std::string path;
    ThreadRanks(size).run([&](Context& ctx, Communicator& world) {
      const std::string saved =
          save_checkpoint(ctx, world, folder_, info(step, size), slices_of_rank(world.rank(), size));
      if (world.rank() == 0) path = saved;
    });
    return path;
  }

  void expect_content(const CheckpointReader& reader) const {
    for (const auto& [name, expected] : std::map<std::string, Tensor>{
             {"weights/matrix", matrix_}, {"exp_avg/vector", vector_}, {"balance/counts", counts_}, {"half", half_}}) {
      Tensor t = zeros(expected.shape(), expected.dtype());
      CheckpointSlice slice{name, t.shape(), 0, t.numel(), t};
      reader.read(slice);
      expect_same_bits(t, expected, name.c_str());
    }
  }
  // Opening or verifying must fail with a CheckpointError that names a file of the folder; returns what it says.
  std::string refusal(const std::string& path) const {
    const std::string message = message_of<CheckpointError>([&] { CheckpointReader(path).verify(); });
    expect_contains(message, folder_);
    return message;
  }
  std::vector<int64_t> steps() const {
    std::vector<int64_t> steps;
    for (const CheckpointEntry& entry : list_checkpoints(folder_)) steps.push_back(entry.step);
    return steps;
  }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }
};

using Steps = std::vector<int64_t>;
using Names = std::vector<std::string>;

TEST_F(CheckpointTest, GivesBackTheSameBits) {
  const CheckpointReader reader(save(12));
  EXPECT_EQ(reader.path(), path("step-000000012"));
  EXPECT_EQ(reader.info().step, 12);
  EXPECT_EQ(reader.info().tokens, 12000);
  EXPECT_EQ(reader.info().config_yaml, info(12).config_yaml);
  EXPECT_EQ(reader.info().data_digest, "abc");
  ASSERT_EQ(reader.tensors().size(), 5u);
  EXPECT_EQ(reader.tensors()[0].name, "balance/counts");
  EXPECT_EQ(reader.tensors()[0].dtype, DType::kI64);
  EXPECT_EQ(reader.tensors()[4].shape, Shape({3, 5}));
  EXPECT_TRUE(reader.contains("weights/matrix"));
  EXPECT_TRUE(reader.contains("exp_avg/none"));
  EXPECT_FALSE(reader.contains("weights/matrix@0"));
  expect_content(reader);
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000012"}));
  EXPECT_EQ(bytes_of(path("LATEST")), "step-000000012\n");
}

TEST_F(CheckpointTest, LoadsWhatAnyNumberOfRanksWrote) {
  for (int size : {1, 2, 3, 9}) {  // of nine, two have nothing to write
    const std::string saved = save_from_ranks(size, size);
    const CheckpointReader reader(saved);
    reader.verify();
    expect_content(reader);
    EXPECT_EQ(reader.info().num_ranks, size);
    EXPECT_EQ(std::distance(fs::directory_iterator(saved), fs::directory_iterator()), size + 1);
  }
}

TEST_F(CheckpointTest, ReadsEveryRangeAcrossPieces) {
  CheckpointReader moved(save_from_ranks(1, 2));
  const CheckpointReader reader = std::move(moved);
  for (int64_t begin = 0; begin <= 15; ++begin)
    for (int64_t end = begin; end <= 15; ++end) {
      Tensor part = zeros({end - begin}, DType::kF32);
      CheckpointSlice slice{"weights/matrix", {3, 5}, begin, end, part};
      reader.read(slice);
      expect_same_bits(part, matrix_.view({15}).rows(begin, end));
    }
}

TEST_F(CheckpointTest, RefusesWhatDoesNotFit) {
  const CheckpointReader reader(save(1));
  Tensor t = zeros({15}, DType::kF32), d = zeros_f64({15});
  auto message = [&](CheckpointSlice slice) { return message_of<CheckpointError>([&] { reader.read(slice); }); };
  EXPECT_EQ(message({"weights/other", {15}, 0, 15, t}), reader.path() + ": holds no tensor weights/other");
  EXPECT_EQ(message({"weights/matrix", {5, 3}, 0, 15, t}),
            reader.path() + ": tensor weights/matrix is F32 (3, 5), expected F32 (5, 3)");
  EXPECT_EQ(message({"weights/matrix", {3, 5}, 0, 15, d}),
            reader.path() + ": tensor weights/matrix is F32 (3, 5), expected F64 (3, 5)");
  for (auto [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{-1, 14}, {1, 16}, {9, 3}, {0, 14}}) {
    CheckpointSlice slice{"weights/matrix", {3, 5}, begin, end, t};
    EXPECT_THROW(reader.read(slice), ShapeError) << begin << " to " << end;
  }
}

TEST_F(CheckpointTest, CommitsOnlyWhatIsCoveredExactlyOnce) {
  save(1);
  auto message = [&](auto&& change) {
    auto pieces = slices();
    change(pieces);
    return message_of<Error>([&] { save_checkpoint(ctx_, *world_, folder_, info(2), pieces); });
  };
  const std::string where = path("step-000000002") + ": ";
  EXPECT_EQ(message([](auto& p) { p.erase(p.begin() + 2); }),
            where + "tensor weights/matrix: elements 4 to 7 are there not at all");
  EXPECT_EQ(message([&](auto& p) { p[2].begin = 3, p[2].data = matrix_.view({15}).rows(3, 7); }),
            where + "tensor weights/matrix: elements 3 to 4 are there twice");
  EXPECT_EQ(message([](auto& p) {
              p[1].shape = {5, 3};
            }),
            "tensor weights/matrix is F32 (3, 5) and F32 (5, 3) in the same checkpoint");
  EXPECT_EQ(message([](auto& p) { p.push_back(p[3]); }),
            "tensor \"exp_avg/vector\" cannot be stored: the name is taken");
  EXPECT_EQ(message([](auto& p) { p[3].end = 6; }), "exp_avg/vector: a slice of 6 elements comes with 7");
  EXPECT_EQ(message([](auto& p) { p[3].begin = 1, p[3].end = 8; }),
            "exp_avg/vector: elements 1 to 8 are outside a tensor of shape (7)");
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000001"}));
}

TEST_F(CheckpointTest, RanksThatDisagreeCommitNothing) {
  const Tensor floats = zeros({4}, DType::kF32), doubles = zeros_f64({4});
  ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
    const Tensor own = world.rank() == 0 ? floats : doubles;
    const int64_t begin = 4 * world.rank();
    EXPECT_EQ(message_of<CheckpointError>([&] {
                save_checkpoint(ctx, world, folder_, info(1, 2), {{"t", {8}, begin, begin + 4, own}});
              }),
              "tensor t is F32 (8) and F64 (8) in the same checkpoint (on rank 0)");
  });
  EXPECT_EQ(names(), Names{});
}

TEST_F(CheckpointTest, AFailureOfOneRankIsTheErrorOfAll) {
  save_from_ranks(1, 3);
  Tensor large = zeros({20000}, DType::kF32);
  {
    FileSizeLimit disk(16384);
    ThreadRanks(3).run([&](Context& ctx, Communicator& world) {
      auto own = slices_of_rank(world.rank(), 3);
      if (world.rank() == 1) own.push_back({"large", {20000}, 0, 20000, large});
      const std::string message = message_of<IoError>([&] { save_checkpoint(ctx, world, folder_, info(2, 3), own); });
      expect_contains(message, "rank-00001.safetensors: cannot be written: ");
      expect_contains(message, " bytes needed, ");
      expect_contains(message, "(on rank 1)");
    });
  }
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000001"}));
  expect_content(CheckpointReader(path("step-000000001")));
  save_from_ranks(2, 3);
  EXPECT_EQ(steps(), (Steps{1, 2})) << "and the next save is as good as any";
}

TEST_F(CheckpointTest, AFullDiskAtTheManifestLeavesTheOlderCheckpoint) {
  save(1);
  CheckpointInfo wordy = info(2);
  wordy.config_yaml = std::string(20000, '#');
  FileSizeLimit disk(16384);
  expect_contains(message_of<IoError>([&] { save_checkpoint(ctx_, *world_, folder_, wordy, slices()); }),
                  "MANIFEST.json: cannot be written");
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000001"}));
  expect_content(CheckpointReader(path("step-000000001")));
}

TEST_F(CheckpointTest, AFileInPlaceOfTheFolderIsNamedByEveryRank) {
  write_bytes(path("file"), "x");
  ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
    expect_contains(message_of<IoError>([&] { save_checkpoint(ctx, world, path("file"), info(1, 2), {}); }),
                    path("file") + ": the folder cannot be created");
  });
  EXPECT_EQ(bytes_of(path("file")), "x");
}

TEST_F(CheckpointTest, EveryTruncationIsSeen) {
  const std::string saved = save_from_ranks(1, 2);
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors", "rank-00001.safetensors"}) {
    const std::string file = saved + "/" + name, whole = bytes_of(file);
    for (size_t length = 0; length < whole.size(); length += 1 + whole.size() / 300) {
      ASSERT_EQ(truncate(file.c_str(), static_cast<off_t>(length)), 0);
      ASSERT_NE(refusal(saved), "") << name << " cut to " << length;
      std::ofstream(file, std::ios::binary | std::ios::app) << whole.substr(length);
    }
    std::ofstream(file, std::ios::binary | std::ios::app) << "x";
    ASSERT_NE(refusal(saved), "") << name << " with one byte more";
    ASSERT_EQ(truncate(file.c_str(), static_cast<off_t>(whole.size())), 0);
    ASSERT_EQ(bytes_of(file), whole);
    expect_content(CheckpointReader(saved));
  }
}

// 10,000 of them, spread over all bytes of the checkpoint; the file and the tensor that holds the bit are named.
TEST_F(CheckpointTest, EveryFlippedBitIsSeenBeforeAByteIsUsed) {
  const std::string saved = save_from_ranks(1, 2);
  const Manifest manifest = Manifest::parse(bytes_of(saved + "/MANIFEST.json"), "");
  const auto holder_of = [&](const std::string& file, int64_t byte) -> std::string {
    for (const auto& [name, tensor] : manifest.tensors)
      for (const Manifest::Extent& e : tensor.extents)
        if (e.file == file && e.offset <= byte && byte < e.offset + (e.end - e.begin) * size_of(tensor.dtype))
          return ": tensor " + name + ": ";
    return file == "MANIFEST.json" ? "" : ": its header does not match its digest";
  };
  struct Stored {
    std::string name, bytes;
    int fd;
  };
  std::vector<Stored> files;
  std::vector<double> sizes;
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors", "rank-00001.safetensors"}) {
    const std::string file = saved + "/" + name;
    files.push_back({name, bytes_of(file), open(file.c_str(), O_RDWR | O_CLOEXEC)});
    sizes.push_back(static_cast<double>(files.back().bytes.size()));
    ASSERT_GE(files.back().fd, 0);
  }
  std::mt19937 random(7);
  std::discrete_distribution<size_t> any_file(sizes.begin(), sizes.end());
  int detected = 0, of_tensors = 0;
  for (int trial = 0; trial < 10000; ++trial) {
    const Stored& file = files[any_file(random)];
    const size_t bit = random() % (8 * file.bytes.size()), at = bit / 8;
    const char flipped = static_cast<char>(file.bytes[at] ^ (1 << bit % 8));
    ASSERT_EQ(pwrite(file.fd, &flipped, 1, static_cast<off_t>(at)), 1);
    const std::string message = message_of<CheckpointError>([&] { expect_content(CheckpointReader(saved)); });
    const std::string holder = holder_of(file.name, static_cast<int64_t>(at));
    ASSERT_NE(message.find(saved + "/" + file.name + holder), std::string::npos)
        << "bit " << bit << " of " << file.name << ", " << holder << ": " << message;
    ++detected;
    of_tensors += holder.starts_with(": tensor ");
    ASSERT_EQ(pwrite(file.fd, &file.bytes[at], 1, static_cast<off_t>(at)), 1);
  }
  for (const Stored& file : files) close(file.fd);
  EXPECT_EQ(detected, 10000);
  EXPECT_GT(of_tensors, 500);
  expect_content(CheckpointReader(saved));
}

// Format 1.0 had no digests of blocks: what it wrote is read for ever.
TEST_F(CheckpointTest, ReadsCheckpointsOfFormat10) {
  const std::string saved = save_from_ranks(1, 2), manifest = saved + "/MANIFEST.json";
  Manifest m = Manifest::parse(bytes_of(manifest), manifest);
  for (auto& file : m.files) file.header_crc32c.reset();
  for (auto& [name, tensor] : m.tensors)
    for (auto& e : tensor.extents) e.crc32c.clear();
  std::string text = without_digest(m.to_text());
  const std::string minor = "\"minor\":";
  text.replace(text.find(minor) + minor.size(), 1, "0");
  write_bytes(manifest, with_digest(text));
  CheckpointReader(saved).verify();
  expect_content(CheckpointReader(saved));
  for (const char* name : {"rank-00000.safetensors", "rank-00001.safetensors"}) {
    const std::string file = saved + "/" + name, whole = bytes_of(file);
    for (size_t at = 0; at < whole.size(); at += 11) {
      std::string flipped = whole;
      flipped[at] ^= 4;
      write_bytes(file, flipped);
      expect_contains(message_of<CheckpointError>([&] { expect_content(CheckpointReader(saved)); }), file);
    }
    write_bytes(file, whole);
  }
}

// Tensors of several blocks, cut among ranks at other places than where blocks end.
class SharedReadTest : public CheckpointTest {
 protected:
  static constexpr int64_t kLong = 3 * kDigestBlockBytes / 4 + 1001, kShort = 300007;
  Tensor long_ = random_normal({kLong}, DType::kF32, 5), short_ = random_normal({kShort}, DType::kF32, 6);

  // Rank r of `size` has the r-th part of each tensor.
  std::vector<CheckpointSlice> parts(const Tensor& of_long, const Tensor& of_short, int rank, int size) const {
    std::vector<CheckpointSlice> slices;
    for (const auto& [name, t] : std::map<std::string, Tensor>{{"a/long", of_long}, {"b/short", of_short}}) {
      const int64_t n = t.numel(), begin = n * rank / size, end = n * (rank + 1) / size;
      slices.push_back({name, {n}, begin, end, t.rows(begin, end)});
    }
    return slices;
  }
  std::string save_from(int size) {
    ThreadRanks(size).run([&](Context& ctx, Communicator& world) {
      save_checkpoint(ctx, world, folder_, info(size, size), parts(long_, short_, world.rank(), size));
    });
    return list_checkpoints(folder_).back().path;
  }
  struct Loaded {
    Tensor of_long, of_short;
    int64_t bytes_read = 0;
    std::vector<std::string> messages;  // of each rank
  };
  Loaded load(const std::string& path, int size) const {
    Loaded loaded{poisoned({kLong}, DType::kF32), poisoned({kShort}, DType::kF32), 0,
                  std::vector<std::string>(static_cast<size_t>(size))};
    std::atomic<int64_t> bytes = 0;
    ThreadRanks(size).run([&](Context& ctx, Communicator& world) {
      loaded.messages[world.rank()] = message_of<CheckpointError>([&] {
        const CheckpointReader reader(ctx, world, path);
        all_or_none(ctx, world, [&] {
          for (CheckpointSlice& slice : parts(loaded.of_long, loaded.of_short, world.rank(), size)) {
            const int64_t cut = slice.data.numel() / 3;  // also in steps that fit no block
            CheckpointSlice first{slice.name, slice.shape, slice.begin, slice.begin + cut, slice.data.rows(0, cut)};
            CheckpointSlice rest{slice.name, slice.shape, slice.begin + cut, slice.end,
                                 slice.data.rows(cut, slice.data.numel())};
            reader.read(first);
            reader.read(rest);
          }
          return std::string();
        });
        reader.settle(ctx, world);
        bytes += reader.bytes_read();
      });
    });
    loaded.bytes_read = bytes;
    return loaded;
  }
};

TEST_F(SharedReadTest, RanksTogetherReadACheckpointOnce) {
  for (int writers : {1, 2, 4, 8, 16}) {
    const std::string saved = save_from(writers);
    int64_t stored = 0;
    for (const auto& entry : fs::directory_iterator(saved)) stored += static_cast<int64_t>(entry.file_size());
    for (int readers : {1, 2, 3, 4, 8, 16}) {
      const Loaded loaded = load(saved, readers);
      for (const std::string& message : loaded.messages) EXPECT_EQ(message, "");
      expect_same_bits(loaded.of_long, long_);
      expect_same_bits(loaded.of_short, short_);
      EXPECT_EQ(loaded.bytes_read, stored) << writers << " wrote, " << readers << " read";
    }
    fs::remove_all(saved);
  }
}

TEST_F(SharedReadTest, ADamagedByteIsTheErrorOfEveryRank) {
  const std::string saved = save_from(2), file = saved + "/rank-00001.safetensors", whole = bytes_of(file);
  for (const size_t at : {size_t{30}, whole.size() / 3, whole.size() / 2, whole.size() - 1}) {
    std::string flipped = whole;
    flipped[at] ^= 1;
    write_bytes(file, flipped);
    for (int readers : {1, 2, 3, 8}) {
      for (const std::string& message : load(saved, readers).messages) {
        expect_contains(message, file + (at == 30 ? ": its header does not" : ": tensor "));
        expect_contains(message, "match");
      }
    }
  }
}

// Parts that overlap, or of blocks that nobody reads whole.
TEST_F(SharedReadTest, PartsThatMakeNoBlockAreReadAgain) {
  const std::string saved = save_from(1), file = saved + "/rank-00000.safetensors", whole = bytes_of(file);
  const auto read = [&] {
    std::vector<std::string> messages(2);
    ThreadRanks(2).run([&](Context& ctx, Communicator& world) {
      messages[world.rank()] = message_of<CheckpointError>([&] {
        const CheckpointReader reader(ctx, world, saved);
        std::vector<float> memory(1000);
        Tensor some = Tensor::of(memory.data(), {1000});
        CheckpointSlice a{"a/long", {kLong}, 5, 1005, some};
        CheckpointSlice b{"a/long", {kLong}, 700 + 300 * world.rank(), 1700 + 300 * world.rank(), some};
        reader.read(a);
        reader.read(b);
        reader.settle(ctx, world);
        expect_same_bits(some, long_.rows(b.begin, b.end));
      });
    });
    EXPECT_EQ(messages[0], messages[1]);
    return messages[0];
  };
  EXPECT_EQ(read(), "");
  std::string flipped = whole;
  flipped[whole.size() - short_.bytes() - long_.bytes() + 4 * 1100] ^= 1;
  write_bytes(file, flipped);
  expect_contains(read(), file + ": tensor a/long: elements 0 to 1048576: do not match their digest");
}

TEST_F(CheckpointTest, SaysWhichFileIsDamaged) {
  const std::string saved = save_from_ranks(1, 2), shard = saved + "/rank-00001.safetensors";
  const std::string whole = bytes_of(shard);
  std::string flipped = whole;
  flipped.back() ^= 1;
  write_bytes(shard, flipped);
  const std::string damaged = " not match their digest in the manifest; the file is damaged or was changed";
  EXPECT_EQ(refusal(saved), shard + ": tensor balance/counts: elements 0 to 4: do" + damaged);
  flipped = whole;
  flipped[20] ^= 1;
  write_bytes(shard, flipped);
  EXPECT_EQ(refusal(saved),
            shard + ": its header does not match its digest in the manifest; the file is damaged or was changed");
  write_bytes(shard, whole.substr(0, whole.size() - 1));
  EXPECT_EQ(refusal(saved), concat(shard, ": is ", whole.size() - 1, " bytes long, the manifest says ", whole.size()));
  fs::remove(shard);
  EXPECT_EQ(refusal(saved), shard + ": is missing");
}

TEST_F(CheckpointTest, FilesOfOthersAreRefused) {
  const std::string one = save_from_ranks(1, 2);
  vector_.data<double>()[0] += 1;  // on rank 1 of 2
  const std::string two = save_from_ranks(2, 2);
  const std::string shard = "/rank-00001.safetensors";
  fs::copy_file(one + shard, two + shard, fs::copy_options::overwrite_existing);
  EXPECT_EQ(refusal(two), two + shard +
                              ": tensor exp_avg/vector: elements 0 to 7: do not match their digest in the "
                              "manifest; the file is damaged or was changed");
  fs::rename(one + shard, one + "/x");
  fs::rename(one + "/rank-00000.safetensors", one + shard);
  fs::rename(one + "/x", one + "/rank-00000.safetensors");
  EXPECT_NE(refusal(one), "") << "swapped";
}

TEST_F(CheckpointTest, OpensNothingButRegularFilesOfItsFolder) {
  EXPECT_EQ(refusal(path("absent")), path("absent") + ": there is no checkpoint folder of this name");
  fs::create_directory(path("empty"));
  EXPECT_EQ(refusal(path("empty")), path("empty/MANIFEST.json") + ": is missing");
  write_bytes(path("file"), "x");
  EXPECT_EQ(refusal(path("file")), path("file") + ": there is no checkpoint folder of this name");

  const std::string saved = save(1);
  for (const char* name : {"MANIFEST.json", "rank-00000.safetensors"}) {
    const std::string file = saved + "/" + name;
    fs::rename(file, path("elsewhere"));
    fs::create_symlink(path("elsewhere"), file);
    EXPECT_EQ(refusal(saved), file + ": is a link, expected a file");
    fs::remove(file);
    fs::create_directory(file);
    EXPECT_EQ(refusal(saved), file + ": expected a file, found a folder");
    fs::remove(file);
    ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
    EXPECT_EQ(refusal(saved), file + ": expected a file, found something else");
    fs::remove(file);
    fs::rename(path("elsewhere"), file);
  }
  expect_content(CheckpointReader(saved));
}

// A manifest whose own digest is right can still be wrong about the files.
TEST_F(CheckpointTest, HeadersMustAgreeWithTheManifest) {
  const std::string saved = save_from_ranks(1, 2), manifest = saved + "/MANIFEST.json";
  const std::string original = bytes_of(manifest);
  auto refusal_with = [&](auto&& change) {
    Manifest m = Manifest::parse(original, manifest);
    change(m);
    write_bytes(manifest, m.to_text());
    return refusal(saved);
  };
  const std::string first = saved + "/rank-00000.safetensors";
  const std::string disagrees = " of the dtype, shape and place that the manifest says";
  // On rank 0: the matrix from 7, its part from 4, the empty one, half.
  EXPECT_EQ(refusal_with([](Manifest& m) { m.tensors.at("half").extents[0].offset += 2; }),
            first + ": its header has no tensor half" + disagrees);
  EXPECT_EQ(refusal_with([](Manifest& m) {
              m.tensors.at("half").shape = {3, 1, 2};
            }),
            first + ": its header has no tensor half" + disagrees);
  EXPECT_EQ(refusal_with([](Manifest& m) { m.tensors.at("weights/matrix").dtype = DType::kI32; }),
            first + ": its header has no tensor weights/matrix@7" + disagrees);
  EXPECT_EQ(refusal_with([](Manifest& m) {
              auto& extents = m.tensors.at("weights/matrix").extents;
              extents[0].end = extents[1].begin = 3;
            }),
            first + ": its header has no tensor weights/matrix@3" + disagrees);
  EXPECT_EQ(refusal_with([](Manifest& m) { m.tensors.erase("half"); }),
            first + ": holds 3 tensors, the manifest knows 2 of them");
  EXPECT_EQ(refusal_with([](Manifest& m) { m.tensors.at("half").extents[0].file = "rank-00009.safetensors"; }),
            manifest + ": tensor half lies in rank-00009.safetensors, which is not listed");
  EXPECT_EQ(refusal_with([](Manifest& m) { m.files.push_back(m.files[0]); }),
            manifest + ": lists rank-00000.safetensors twice");
  EXPECT_EQ(refusal_with([](Manifest& m) { m.tensors.at("weights/matrix").extents.pop_back(); }),
            manifest + ": tensor weights/matrix: its parts end at element 7 of 15");
  EXPECT_EQ(
      refusal_with([](Manifest& m) { m.files[1].sha256 = "x"; }),
      saved + "/rank-00001.safetensors: does not match its digest in the manifest; the file is damaged or was changed");
  fs::resize_file(manifest, (int64_t{64} << 20) + 1);
  expect_contains(refusal(saved), "too long for a manifest");
}

TEST_F(CheckpointTest, ListsCommittedCheckpointsInOrder) {
  for (int64_t step : {10, 2, 1234567890}) save(step);
  fs::create_directories(path(".tmp-step-000000400"));
  fs::create_directories(path("step-000000500"));  // was one, as a folder gets this name with its manifest inside
  write_bytes(path("step-000000600"), "a file");
  for (const char* foreign : {"step-7", "step-0000000010", "step-000000010x", "xstep-000000010", "step--00000001",
                              "step-", "step-99999999999999999999"}) {
    fs::create_directories(path(foreign));
    write_bytes(path(foreign) + "/MANIFEST.json", "{}");
  }
  EXPECT_EQ(steps(), (Steps{2, 10, 500, 1234567890}));
  expect_contains(refusal(path("step-000000500")), "step-000000500/MANIFEST.json: is missing");
  EXPECT_EQ(list_checkpoints(folder_)[0].path, path("step-000000002"));
  EXPECT_TRUE(list_checkpoints(path("absent")).empty());
  EXPECT_TRUE(list_checkpoints(path("LATEST")).empty());
}

TEST_F(CheckpointTest, PrunesAllButTheNewest) {
  for (int64_t step : {1, 2, 3, 4}) save(step);
  fs::create_directories(path(".corrupt-step-000000001"));
  fs::create_directories(path(".tmp-step-000000400/deep"));
  prune_checkpoints(folder_, 0);
  EXPECT_EQ(steps(), (Steps{1, 2, 3, 4})) << "0 keeps all";
  EXPECT_EQ(names(), (Names{".corrupt-step-000000001", "LATEST", "step-000000001", "step-000000002", "step-000000003",
                            "step-000000004"}));
  for (const char* killed : {".trash-step-000000000/deep", ".trash-step-000000001/deep"})  // of a pruning
    fs::create_directories(path(killed));
  prune_checkpoints(folder_, 2);
  EXPECT_EQ(steps(), (Steps{3, 4}));
  prune_checkpoints(folder_, 2);
  EXPECT_EQ(steps(), (Steps{3, 4}));
  prune_checkpoints(folder_, 1);
  EXPECT_EQ(names(), (Names{".corrupt-step-000000001", "LATEST", "step-000000004"}));
  prune_checkpoints(path("absent"), 1);
}

// After a resume from step 10 because step 30 was damaged, what is saved at 20 is worth more than 30.
TEST_F(CheckpointTest, NeverPrunesTheOneCommittedLast) {
  for (int64_t step : {10, 30, 20}) save(step);
  prune_checkpoints(folder_, 1);
  EXPECT_EQ(steps(), (Steps{20, 30}));
  for (const char* garbage : {"", "step-000000020/../x\n", "\xff\n"}) {
    write_bytes(path("LATEST"), garbage);
    prune_checkpoints(folder_, 2);
    EXPECT_EQ(steps(), (Steps{20, 30})) << "LATEST is a hint only";
  }
  prune_checkpoints(folder_, 1);
  EXPECT_EQ(steps(), (Steps{30}));
}

TEST_F(CheckpointTest, SavingAStepAgainReplacesIt) {
  save(5);
  fs::create_directories(path(".trash-step-000000005/left over"));
  vector_.data<double>()[3] = 42;
  expect_content(CheckpointReader(save_from_ranks(5, 2)));
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000005"}));
  // A folder of that name that is no checkpoint goes the same way.
  fs::remove(path("step-000000005/MANIFEST.json"));
  expect_content(CheckpointReader(save(5)));
}

TEST_F(CheckpointTest, ASaveThatFailsLeavesTheSameStepAsItWas) {
  save(5);
  auto pieces = slices();
  pieces.erase(pieces.begin());
  EXPECT_THROW(save_checkpoint(ctx_, *world_, folder_, info(5), pieces), CheckpointError);
  expect_content(CheckpointReader(path("step-000000005")));
}

// What LATEST does not name is not gone on from.
TEST_F(CheckpointTest, CommitsNothingThatLatestCannotName) {
  save(1);
  fs::remove(path("LATEST"));
  fs::create_directory(path("LATEST"));
  expect_contains(message_of<IoError>([&] { save(2); }), path("LATEST") + ": is there already and is no file");
  EXPECT_EQ(steps(), Steps{1});
}

TEST_F(CheckpointTest, LeftOversOfAKilledSaveDoNotMatter) {
  save(1);
  fs::create_directories(path(".tmp-step-000000002"));
  write_bytes(path(".tmp-step-000000002/rank-00000.safetensors.part"), "half");
  write_bytes(path(".tmp-step-000000002/rank-00007.safetensors"), "whole, of a rank that is no more");
  EXPECT_EQ(steps(), Steps{1});
  const std::string saved = save(2);
  expect_content(CheckpointReader(saved));
  EXPECT_FALSE(fs::exists(saved + "/rank-00007.safetensors"));
}

// A process that saves and prunes without end is killed at random times: what is listed afterwards is always whole.
TEST_F(CheckpointTest, AKillAtAnyTimeLeavesOnlyWholeCheckpoints) {
  save(1);
  std::mt19937 random(3);
  for (int kills = 0; kills < 20; ++kills) {
    const pid_t child = fork();
    if (child == 0) {
      for (int64_t turn = 0;; ++turn) {
        save(1 + turn % 3);  // new and replaced ones
        prune_checkpoints(folder_, 1);
      }
    }
    usleep(1000 + random() % 20000);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    int64_t whole = 0;
    for (const CheckpointEntry& entry : list_checkpoints(folder_)) {
      expect_content(CheckpointReader(entry.path));
      ++whole;
    }
    ASSERT_GT(whole, 0) << "after kill " << kills;
  }
  save(4);
  prune_checkpoints(folder_, 1);
  EXPECT_EQ(names(), (Names{"LATEST", "step-000000004"}));
}

}  // namespace
}  // namespace braid
