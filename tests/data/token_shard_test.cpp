#include "data/token_shard.h"

#include <hdf5.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "kernels/core/error.h"
#include "tests/data/shard_files.h"

namespace {
std::atomic<int> failing_reads = 0;
}

// Stands before libc's, so that a test can make reads fail as a dying disk does.
extern "C" ssize_t pread(int fd, void* out, size_t bytes, off_t position) {
  if (failing_reads > 0) {
    --failing_reads;
    errno = EIO;
    return -1;
  }
  return syscall(SYS_pread64, fd, out, bytes, position);
}

namespace braid {
namespace {

using namespace braid::testing;

std::vector<uint32_t> read_all(const TokenShard& shard) {
  std::vector<uint32_t> tokens(shard.info().num_tokens);
  shard.read(0, shard.info().num_tokens, tokens.data());
  return tokens;
}

// ---- Round trip

TEST(TokenShard, ReturnsWhatWasWritten) {
  TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  TokenShardWriter writer(path, 300, 299, "letters", "0123abcd");
  writer.add_document(std::vector<uint32_t>{1, 2, 3});
  writer.add_document({});
  writer.append(std::vector<uint32_t>{4, 5});
  writer.append(std::vector<uint32_t>{298});
  writer.end_document();
  writer.set_source_digest("feed");
  writer.close();

  const TokenShard shard(path);
  const ShardInfo& info = shard.info();
  EXPECT_EQ(info.path, path);
  EXPECT_EQ(info.vocab_size, 300);
  EXPECT_EQ(info.end_of_document, 299);
  EXPECT_EQ(info.num_tokens, 9);
  EXPECT_EQ(info.num_documents, 3);
  EXPECT_EQ(info.token_bytes, 2);
  EXPECT_EQ(info.tokenizer, "letters");
  EXPECT_EQ(info.tokenizer_digest, "0123abcd");
  EXPECT_EQ(info.source_digest, "feed");
  EXPECT_EQ(shard.document_offsets(), (std::vector<int64_t>{0, 4, 5, 9}));
  EXPECT_EQ(read_all(shard), (std::vector<uint32_t>{1, 2, 3, 299, 299, 4, 5, 298, 299}));
  uint32_t middle[2];
  shard.read(4, 6, middle);
  EXPECT_EQ(middle[0], 299u);
  EXPECT_EQ(middle[1], 4u);
  shard.read(9, 9, middle);
}

TEST(TokenShard, StoresWideIdsAndLongDocumentsExactly) {
  TemporaryFolder folder;
  for (int64_t vocab : {1 << 16, 100000}) {
    const std::string path = folder / std::to_string(vocab);
    std::mt19937 random(1);
    std::vector<uint32_t> tokens(50001);
    for (uint32_t& token : tokens) token = static_cast<uint32_t>(random() % vocab);
    tokens[0] = static_cast<uint32_t>(vocab - 1);
    TokenShardWriter writer(path, vocab, 0, "wide", "digest");
    writer.add_document(tokens);
    writer.close();
    const TokenShard shard(path);
    EXPECT_EQ(shard.info().token_bytes, vocab <= 1 << 16 ? 2 : 4);
    tokens.push_back(0);
    EXPECT_EQ(read_all(shard), tokens);
    std::vector<uint32_t> part(20000);
    shard.read(7777, 27777, part.data());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 7777));
  }
}

TEST(TokenShard, MayBeEmpty) {
  TemporaryFolder folder;
  const TokenShard shard(write_shard(folder / "empty.h5", {}));
  EXPECT_EQ(shard.info().num_tokens, 0);
  EXPECT_EQ(shard.info().num_documents, 0);
  EXPECT_EQ(shard.document_offsets(), std::vector<int64_t>{0});
}

TEST(TokenShard, IsTheSameFileForTheSameTokens) {
  TemporaryFolder folder;
  const std::string bytes = bytes_of(write_shard(folder / "a.h5", {5, 3}));
  EXPECT_EQ(bytes_of(write_shard(folder / "b.h5", {5, 3})), bytes);
  // Neither tells when it was written.
  int headers = 0;
  for (size_t at = bytes.find("OHDR"); at != bytes.npos; at = bytes.find("OHDR", at + 1), ++headers)
    EXPECT_EQ(bytes[at + 5] & 0x20, 0);
  EXPECT_EQ(headers, 3);
}

TEST(TokenShard, CanBeReadByManyThreads) {
  TemporaryFolder folder;
  const TokenShard shard(write_shard(folder / "a.h5", std::vector<int64_t>(100, 77)));
  const std::vector<uint32_t> expected = read_all(shard);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) wrong += read_all(shard) != expected;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// ---- Writer

TEST(TokenShardWriter, LeavesNothingBehindWithoutClose) {
  TemporaryFolder folder;
  {
    TokenShardWriter writer(folder / "a.h5", 10, 9, "t", "d");
    writer.add_document(std::vector<uint32_t>(100000, 3));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder / ""));
}

TEST(TokenShardWriter, NamesThePathThatCannotBeWritten) {
  TemporaryFolder folder;
  expect_contains(message_of<IoError>([&] { TokenShardWriter(folder / "none/a.h5", 10, 9, "t", "d"); }), "none/a.h5");
  std::filesystem::create_directory(folder / "b.h5.part");
  TokenShardWriter writer(folder / "b.h5", 10, 9, "t", "d");
  writer.add_document({});
  expect_contains(message_of<IoError>([&] { writer.close(); }), "b.h5.part");
  std::filesystem::create_directories(folder / "c.h5/full");
  TokenShardWriter blocked(folder / "c.h5", 10, 9, "t", "d");
  expect_contains(message_of<IoError>([&] { blocked.close(); }), "c.h5: cannot be renamed");
  EXPECT_FALSE(std::filesystem::exists(folder / "c.h5.part"));
}

TEST(TokenShardWriter, ReportsAFullDisk) {
  TemporaryFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);  // so that a write behind this size fails
    const rlimit limit = {65536, 65536};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_shard(folder / "a.h5", {100000});
      ::_exit(1);
    } catch (const IoError&) {
      ::_exit(std::filesystem::is_empty(folder / "") ? 0 : 2);
    }
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(TokenShardWriter, RefusesWhatItsReaderWouldRefuse) {
  TemporaryFolder folder;
  TokenShardWriter writer(folder / "a.h5", 10, 9, "t", "d");
  writer.add_document(std::vector<uint32_t>{1});
  expect_contains(message_of<DataError>([&] {
                    writer.add_document(std::vector<uint32_t>{1, 10});
                  }),
                  "token 10 of document 1 is outside the vocabulary of 10");
  EXPECT_THROW(TokenShardWriter(folder / "b.h5", 0, 0, "t", "d"), DataError);
  EXPECT_THROW(TokenShardWriter(folder / "b.h5", (int64_t{1} << 32) + 1, 0, "t", "d"), DataError);
  EXPECT_THROW(TokenShardWriter(folder / "b.h5", 10, 10, "t", "d"), DataError);
  EXPECT_THROW(TokenShardWriter(folder / "b.h5", 10, 9, "", "d"), DataError);
  EXPECT_THROW(TokenShardWriter(folder / "b.h5", 10, 9, "t", ""), DataError);
}

TEST(TokenShardWriter, LeavesNoShardWhenItIsKilled) {
  TemporaryFolder folder;
  const std::string path = folder / "a.h5";
  const pid_t child = ::fork();
  if (child == 0) {
    TokenShardWriter writer(path, 10, 9, "t", "d");
    writer.add_document(std::vector<uint32_t>(100000, 3));
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_FALSE(std::filesystem::exists(path));
}

// ---- Shards written by libhdf5 itself: what other tools write is read, what is not a shard is refused.

enum class Storage { kContiguous, kChunked, kCompressed, kCompact, kExternal, kVirtual, kUnwritten };

struct DatasetSpec {
  hid_t type;
  std::vector<hsize_t> shape;
  Storage storage = Storage::kContiguous;
};

// A good shard of the documents {1 2 9} {3 9}, as h5py or a C program would write it. A test changes a field.
struct ShardSpec {
  H5F_libver_t version = H5F_LIBVER_EARLIEST;
  DatasetSpec tokens = {H5T_STD_U16LE, {5}};
  DatasetSpec offsets = {H5T_STD_U64LE, {3}};
  std::vector<int64_t> token_values = {1, 2, 9, 3, 9}, offset_values = {0, 3, 5};
  std::string skipped;                          // dataset or attribute that is not written
  std::function<void(hid_t file)> change = {};  // applied last
};

void write_dataset(hid_t file, const std::string& name, const DatasetSpec& spec, const std::vector<int64_t>& values) {
  const hid_t space = H5Screate_simple(static_cast<int>(spec.shape.size()), spec.shape.data(), nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const std::vector<hsize_t> chunk(spec.shape.size(), 2);
  switch (spec.storage) {
    case Storage::kCompressed: H5Pset_deflate(creation, 1); [[fallthrough]];
    case Storage::kChunked: H5Pset_chunk(creation, static_cast<int>(chunk.size()), chunk.data()); break;
    case Storage::kCompact: H5Pset_layout(creation, H5D_COMPACT); break;
    case Storage::kExternal: H5Pset_external(creation, "/etc/passwd", 0, H5F_UNLIMITED); break;
    case Storage::kVirtual: H5Pset_virtual(creation, space, "/etc/passwd", "tokens", space); break;
    case Storage::kContiguous:
    case Storage::kUnwritten: break;
  }
  const hid_t dataset = H5Dcreate2(file, name.c_str(), spec.type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  ASSERT_GE(dataset, 0) << name;
  const bool has_values =
      spec.storage != Storage::kUnwritten && spec.storage != Storage::kExternal && spec.storage != Storage::kVirtual;
  if (has_values) {
    const hid_t memory_type = H5Tget_class(spec.type) == H5T_COMPOUND ? spec.type : H5T_NATIVE_INT64;
    ASSERT_GE(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0) << name;
  }
  H5Dclose(dataset);
  H5Pclose(creation);
  H5Sclose(space);
}

void write_attribute(hid_t object, const char* name, hid_t type, const void* value, hsize_t count = 0) {
  const hid_t space = count == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &count, nullptr);
  const hid_t attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Awrite(attribute, type, value), 0) << name;
  H5Aclose(attribute);
  H5Sclose(space);
}

void write_attribute(hid_t object, const char* name, int64_t value) {
  write_attribute(object, name, H5T_NATIVE_INT64, &value);
}

void write_attribute(hid_t object, const char* name, const std::string& value) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, value.size());
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  write_attribute(object, name, type, value.data());
  H5Tclose(type);
}

std::string write_hdf5(const std::string& path, const ShardSpec& spec) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, spec.version, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  EXPECT_GE(file, 0);
  if (spec.skipped != "tokens") write_dataset(file, "tokens", spec.tokens, spec.token_values);
  if (spec.skipped != "document_offsets") write_dataset(file, "document_offsets", spec.offsets, spec.offset_values);
  const std::vector<std::pair<const char*, std::string>> texts = {
      {"format", "braid-tokens"}, {"tokenizer", "test"}, {"tokenizer_digest", "digest"}};
  const std::vector<std::pair<const char*, int64_t>> numbers = {{"format_version", 1},
                                                                {"vocab_size", 10},
                                                                {"end_of_document", 9},
                                                                {"num_tokens", spec.token_values.size()},
                                                                {"num_documents", spec.offset_values.size() - 1}};
  for (const auto& [name, value] : texts)
    if (spec.skipped != name) write_attribute(file, name, value);
  for (const auto& [name, value] : numbers)
    if (spec.skipped != name) write_attribute(file, name, value);
  if (spec.change) spec.change(file);
  H5Fclose(file);
  H5Pclose(access);
  return path;
}

void replace_attribute(hid_t file, const char* name, int64_t value) {
  H5Adelete(file, name);
  write_attribute(file, name, value);
}
void replace_attribute(hid_t file, const char* name, const std::string& value) {
  H5Adelete(file, name);
  write_attribute(file, name, value);
}

TEST(TokenShard, ReadsEveryVersionThatLibhdf5Writes) {
  TemporaryFolder folder;
  for (H5F_libver_t version : {H5F_LIBVER_EARLIEST, H5F_LIBVER_V18, H5F_LIBVER_V110}) {
    for (hid_t type : {H5T_STD_U16LE, H5T_STD_U32LE}) {
      ShardSpec spec{.version = version, .tokens = {type, {5}}};
      const TokenShard shard(write_hdf5(folder / "a.h5", spec));
      EXPECT_EQ(read_all(shard), (std::vector<uint32_t>{1, 2, 9, 3, 9}));
      EXPECT_EQ(shard.document_offsets(), (std::vector<int64_t>{0, 3, 5}));
      EXPECT_EQ(shard.info().tokenizer, "test");
      EXPECT_EQ(shard.info().source_digest, "");
    }
  }
}

TEST(TokenShard, UnderstandsIntegersOfEveryWidth) {
  TemporaryFolder folder;
  auto vocabulary = [&](hid_t type, auto value) {
    const std::string path = write_hdf5(folder / "a.h5", {.change = [&](hid_t file) {
                                          H5Adelete(file, "vocab_size");
                                          write_attribute(file, "vocab_size", type, &value);
                                        }});
    return TokenShard(path).info().vocab_size;
  };
  EXPECT_EQ(vocabulary(H5T_STD_U8LE, uint8_t{200}), 200);
  EXPECT_EQ(vocabulary(H5T_STD_I16LE, int16_t{300}), 300);
  EXPECT_EQ(vocabulary(H5T_STD_U32LE, uint32_t{4000000000}), 4000000000);
  EXPECT_THROW(vocabulary(H5T_STD_I8LE, int8_t{-56}), DataError);
  EXPECT_THROW(vocabulary(H5T_STD_U64LE, ~uint64_t{0}), DataError);
  EXPECT_THROW(vocabulary(H5T_STD_I32BE, int32_t{10}), DataError);
}

TEST(TokenShard, IsWhatLibhdf5Reads) {
  TemporaryFolder folder;
  const TokenShard shard(write_shard(folder / "a.h5", {30, 1, 12}, 500));
  const std::vector<uint32_t> expected = read_all(shard);
  const hid_t file = H5Fopen((folder / "a.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  const hid_t tokens = H5Dopen2(file, "tokens", H5P_DEFAULT), offsets = H5Dopen2(file, "document_offsets", H5P_DEFAULT);
  std::vector<uint32_t> values(expected.size());
  std::vector<int64_t> offset_values(4);
  EXPECT_GE(H5Dread(tokens, H5T_NATIVE_UINT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  EXPECT_GE(H5Dread(offsets, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, offset_values.data()), 0);
  EXPECT_EQ(values, expected);
  EXPECT_EQ(offset_values, shard.document_offsets());
  int64_t vocabulary = 0;
  const hid_t attribute = H5Aopen(file, "vocab_size", H5P_DEFAULT);
  EXPECT_GE(H5Aread(attribute, H5T_NATIVE_INT64, &vocabulary), 0);
  EXPECT_EQ(vocabulary, kVocabulary);
  H5Aclose(attribute);
  H5Dclose(tokens);
  H5Dclose(offsets);
  EXPECT_GE(H5Fclose(file), 0);
}

struct BrokenCase {
  const char* name;
  ShardSpec spec;
  const char* message;  // part of it, behind the path
};

hid_t compound_type() {
  const hid_t type = H5Tcreate(H5T_COMPOUND, 4);
  H5Tinsert(type, "id", 0, H5T_STD_U32LE);
  return type;
}
hid_t partial_type() {
  const hid_t type = H5Tcopy(H5T_STD_U16LE);
  H5Tset_precision(type, 12);
  return type;
}
hid_t variable_string() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  return type;
}

std::vector<BrokenCase> broken_cases() {
  return {
      {"float tokens",
       {.tokens = {H5T_IEEE_F32LE, {5}}},
       "tokens: expected unsigned 16 or 32-bit integers (little-endian), found 32-bit floats"},
      {"signed tokens", {.tokens = {H5T_STD_I32LE, {5}}}, "tokens: expected unsigned 16 or 32-bit integers"},
      {"8-bit tokens", {.tokens = {H5T_STD_U8LE, {5}}}, "found unsigned 8-bit integers"},
      {"64-bit tokens", {.tokens = {H5T_STD_U64LE, {5}}}, "found unsigned 64-bit integers"},
      {"big-endian tokens", {.tokens = {H5T_STD_U16BE, {5}}}, "found big-endian unsigned 16-bit integers"},
      {"compound tokens", {.tokens = {compound_type(), {5}}}, "tokens: expected unsigned 16 or 32-bit integers"},
      {"12-bit tokens", {.tokens = {partial_type(), {5}}}, "only 12 bits of which count"},
      {"signed offsets", {.offsets = {H5T_STD_I64LE, {3}}}, "document_offsets: expected unsigned 64-bit integers"},
      {"32-bit offsets", {.offsets = {H5T_STD_U32LE, {3}}}, "document_offsets: expected unsigned 64-bit integers"},
      {"2-D tokens", {.tokens = {H5T_STD_U16LE, {5, 1}}}, "tokens: expected 1 dimension, found 2"},
      {"scalar tokens", {.tokens = {H5T_STD_U16LE, {}}}, "tokens: expected 1 dimension, found 0"},
      {"2-D offsets", {.offsets = {H5T_STD_U64LE, {1, 3}}}, "document_offsets: expected 1 dimension, found 2"},
      {"chunked",
       {.tokens = {H5T_STD_U16LE, {5}, Storage::kChunked}},
       "tokens: expected contiguous storage, found chunked"},
      {"compressed",
       {.tokens = {H5T_STD_U16LE, {5}, Storage::kCompressed}},
       "tokens: expected plain data, found filters"},
      {"compact",
       {.tokens = {H5T_STD_U16LE, {5}, Storage::kCompact}},
       "tokens: expected contiguous storage, found compact"},
      {"virtual",
       {.version = H5F_LIBVER_V110, .tokens = {H5T_STD_U16LE, {5}, Storage::kVirtual}},
       "tokens: expected contiguous storage, found virtual"},
      {"external storage",
       {.tokens = {H5T_STD_U16LE, {5}, Storage::kExternal}},
       "tokens: expected its data in this file, found external files"},
      {"never written",
       {.tokens = {H5T_STD_U16LE, {5}, Storage::kUnwritten}},
       "tokens: its 5 elements were never written"},
      {"2^60 tokens",
       {.tokens = {H5T_STD_U16LE, {hsize_t{1} << 60}, Storage::kUnwritten}},
       "tokens: 1152921504606846976 elements of 2 bytes do not fit"},
      {"no tokens", {.skipped = "tokens"}, "dataset tokens is missing"},
      {"no offsets", {.skipped = "document_offsets"}, "dataset document_offsets is missing"},
      {"empty offsets",
       {.offsets = {H5T_STD_U64LE, {0}}, .token_values = {1, 2, 9, 3, 9}, .offset_values = {0}},
       "document_offsets has 0 elements"},
      {"offsets end early", {.offset_values = {0, 3, 4}}, "document_offsets: expected to end at the 5 tokens, found 4"},
      {"offsets end late", {.offset_values = {0, 3, 6}}, "document_offsets: expected to end at the 5 tokens, found 6"},
      {"offsets start late", {.offset_values = {1, 3, 5}}, "document_offsets: expected to start at 0, found 1"},
      {"offsets decrease",
       {.offset_values = {0, 6, 5}},
       "document_offsets: expected ascending values, found 5 at 2 after 6"},
      {"third dataset",
       {.change =
            [](hid_t f) {
              write_dataset(f, "more", {H5T_STD_U8LE, {1}}, {1});
            }},
       "unknown object more"},
      {"group",
       {.change = [](hid_t f) { H5Gclose(H5Gcreate2(f, "more", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); }},
       "unknown object more"},
      {"soft link",
       {.change = [](hid_t f) { H5Lcreate_soft("/tokens", f, "more", H5P_DEFAULT, H5P_DEFAULT); }},
       "unknown soft link more"},
      {"external link",
       {.change = [](hid_t f) { H5Lcreate_external("/etc/passwd", "/x", f, "more", H5P_DEFAULT, H5P_DEFAULT); }},
       "unknown external link more"},
      {"tokens behind a soft link",
       {.skipped = "tokens",
        .change = [](hid_t f) { H5Lcreate_soft("/document_offsets", f, "tokens", H5P_DEFAULT, H5P_DEFAULT); }},
       "tokens: expected a dataset, found a soft link"},
      {"tokens behind an external link",
       {.skipped = "tokens",
        .change = [](hid_t f) { H5Lcreate_external("/etc/passwd", "/x", f, "tokens", H5P_DEFAULT, H5P_DEFAULT); }},
       "tokens: expected a dataset, found an external link"},
      {"tokens as a group",
       {.skipped = "tokens",
        .change = [](hid_t f) { H5Gclose(H5Gcreate2(f, "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); }},
       "tokens: expected a dataset, found a group"},
      {"tokens as a type",
       {.skipped = "tokens",
        .change =
            [](hid_t f) { H5Tcommit2(f, "tokens", H5Tcopy(H5T_STD_U16LE), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT); }},
       "tokens: expected a dataset, found an object without shape"},
      {"attribute on tokens",
       {.change =
            [](hid_t f) {
              const hid_t tokens = H5Dopen2(f, "tokens", H5P_DEFAULT);
              write_attribute(tokens, "unit", int64_t{1});
              H5Dclose(tokens);
            }},
       "tokens: expected no attributes"},
      {"unknown attribute",
       {.change = [](hid_t f) { write_attribute(f, "author", int64_t{1}); }},
       "unknown attribute author"},
      {"many attributes",
       {.version = H5F_LIBVER_V18,
        .change =
            [](hid_t f) {
              for (char c : {'a', 'b', 'c'}) write_attribute(f, std::string(1, c).c_str(), 1);
            }},
       "too many attributes"},
      {"many links",
       {.version = H5F_LIBVER_V18,
        .change =
            [](hid_t f) {
              for (char c = 'a'; c < 'm'; ++c)
                H5Lcreate_soft("/x", f, std::string(1, c).c_str(), H5P_DEFAULT, H5P_DEFAULT);
            }},
       "too many links"},
      {"other format",
       {.change = [](hid_t f) { replace_attribute(f, "format", "megatron"); }},
       "attribute format: is megatron"},
      {"later version",
       {.change = [](hid_t f) { replace_attribute(f, "format_version", 2); }},
       "attribute format_version: is 2, expected 1 to 1"},
      {"no vocabulary",
       {.change = [](hid_t f) { replace_attribute(f, "vocab_size", 0); }},
       "attribute vocab_size: is 0"},
      {"negative vocabulary",
       {.change = [](hid_t f) { replace_attribute(f, "vocab_size", -5); }},
       "attribute vocab_size: is -5, expected 1"},
      {"end of document outside",
       {.change = [](hid_t f) { replace_attribute(f, "end_of_document", 10); }},
       "attribute end_of_document: is 10, expected 0 to 9"},
      {"wrong number of tokens",
       {.change = [](hid_t f) { replace_attribute(f, "num_tokens", 4); }},
       "attribute num_tokens: is 4, but tokens has 5 elements"},
      {"wrong number of documents",
       {.change = [](hid_t f) { replace_attribute(f, "num_documents", 3); }},
       "attribute num_documents: is 3, but document_offsets has 3 elements"},
      {"text as a number",
       {.change = [](hid_t f) { replace_attribute(f, "vocab_size", "10"); }},
       "attribute vocab_size: expected an integer of at most 64 bits (little-endian), found strings of 2 bytes"},
      {"number as a text",
       {.change = [](hid_t f) { replace_attribute(f, "tokenizer", 10); }},
       "attribute tokenizer: expected a string of fixed length, found signed 64-bit integers"},
      {"variable string",
       {.change =
            [](hid_t f) {
              H5Adelete(f, "tokenizer");
              const char* value = "test";
              write_attribute(f, "tokenizer", variable_string(), &value);
            }},
       "attribute tokenizer: expected a string of fixed length, found strings or sequences of variable length"},
      {"empty text",
       {.change = [](hid_t f) { replace_attribute(f, "tokenizer_digest", std::string(1, '\0')); }},
       "attribute tokenizer_digest: expected 1 to 4096 bytes, found 0"},
      {"array attribute",
       {.change =
            [](hid_t f) {
              H5Adelete(f, "vocab_size");
              const int64_t values[2] = {10, 10};
              write_attribute(f, "vocab_size", H5T_NATIVE_INT64, values, 2);
            }},
       "attribute vocab_size: expected a scalar, found an array"},
      {"missing attribute", {.skipped = "vocab_size"}, "attribute vocab_size is missing"},
      {"missing text", {.skipped = "tokenizer_digest"}, "attribute tokenizer_digest is missing"},
  };
}

TEST(BrokenShard, IsRefusedWithItsReason) {
  TemporaryFolder folder;
  for (const BrokenCase& c : broken_cases()) {
    SCOPED_TRACE(c.name);
    const std::string path = write_hdf5(folder / "a.h5", c.spec);
    const std::string message = message_of<DataError>([&] { TokenShard{path}; });
    expect_contains(message, path);
    expect_contains(message, c.message);
  }
}

TEST(BrokenShard, IsRefusedInEveryVersion) {
  TemporaryFolder folder;
  for (BrokenCase& c : broken_cases())
    for (H5F_libver_t version : {H5F_LIBVER_V18, H5F_LIBVER_V110}) {
      SCOPED_TRACE(c.name);
      c.spec.version = version;
      const std::string path = write_hdf5(folder / "a.h5", c.spec);
      expect_contains(message_of<DataError>([&] { TokenShard{path}; }), path);
    }
}

TEST(BrokenShard, WithAnIdOutsideTheVocabularyFailsWhereItIsRead) {
  TemporaryFolder folder;
  for (int64_t id : {10, 65535}) {
    const std::string path = write_hdf5(folder / "a.h5", {.token_values = {1, 2, 9, id, 9}});
    const TokenShard shard(path);
    uint32_t tokens[5];
    shard.read(0, 3, tokens);
    EXPECT_EQ(message_of<DataError>([&] { shard.read(1, 5, tokens); }),
              concat(path, ": tokens[3] is ", id, ", outside the vocabulary of 10"));
  }
  const std::string path =
      write_hdf5(folder / "b.h5", {.tokens = {H5T_STD_U32LE, {5}}, .token_values = {4294967295, 2, 9, 1, 9}});
  expect_contains(message_of<DataError>([&] { read_all(TokenShard(path)); }), "tokens[0] is 4294967295, outside");
}

TEST(BrokenShard, WhoseChunkRankContradictsItsShapeIsRefused) {
  TemporaryFolder folder;
  const std::string path = write_hdf5(folder / "a.h5", {.tokens = {H5T_STD_U16LE, {5}, Storage::kChunked}});
  std::string bytes = bytes_of(path);
  // Layout message: version 3, chunked, rank + 1.
  const size_t at = bytes.find(std::string("\x03\x02\x02", 3));
  ASSERT_NE(at, std::string::npos);
  for (char rank : {'\x00', '\x01', '\x05', '\x21'}) {
    bytes[at + 2] = rank;
    write_bytes(path, bytes);
    expect_contains(message_of<DataError>([&] { TokenShard{path}; }), "tokens: expected contiguous storage");
  }
}

TEST(BrokenShard, WhoseHeaderContinuesInItselfIsRefused) {
  TemporaryFolder folder;
  const std::string path = write_hdf5(folder / "a.h5", ShardSpec{});
  std::string bytes = bytes_of(path);
  // Continuation message: kind 16, 16 bytes, no flags; then where it continues, and for how long.
  const size_t at = bytes.find(std::string("\x10\0\x10\0\0\0\0\0", 8));
  ASSERT_NE(at, std::string::npos);
  const uint64_t itself[] = {at, 24};
  bytes.replace(at + 8, sizeof itself, reinterpret_cast<const char*>(itself), sizeof itself);
  write_bytes(path, bytes);
  expect_contains(message_of<DataError>([&] { TokenShard{path}; }), "its header continues more than 64 times");
}

TEST(BrokenShard, ThatIsCutOrLongerIsRefusedWithBothSizes) {
  TemporaryFolder folder;
  for (const std::string& whole :
       {bytes_of(write_shard(folder / "a.h5", {40, 2, 70})), bytes_of(write_hdf5(folder / "b.h5", ShardSpec{}))}) {
    const std::string path = folder / "cut.h5";
    for (size_t i = 0; i < 50; ++i) {
      const size_t size = whole.size() * i / 50;
      write_bytes(path, whole.substr(0, size));
      const std::string message = message_of<DataError>([&] { TokenShard{path}; });
      expect_contains(message, path);
      if (size >= 96) {
        expect_contains(message, concat(whole.size()));
        expect_contains(message, concat(size));
      }
    }
    write_bytes(path, whole.substr(0, whole.size() - 1));
    EXPECT_THROW(TokenShard{path}, DataError);
    write_bytes(path, whole + '\0');
    expect_contains(
        message_of<DataError>([&] { TokenShard{path}; }),
        concat("longer than its superblock says: ", whole.size(), " bytes expected, the file has ", whole.size() + 1));
  }
}

TEST(BrokenShard, ThatIsNoHdf5FileIsRefused) {
  TemporaryFolder folder;
  auto refusal = [&](const std::string& name) {
    const std::string message = message_of<DataError>([&] { TokenShard{folder / name}; });
    expect_contains(message, folder / name);
    return message;
  };
  expect_contains(refusal("missing.h5"), "No such file");
  std::filesystem::create_directory(folder / "folder.h5");
  expect_contains(refusal("folder.h5"), "found a folder");
  write_bytes(folder / "empty.h5", "");
  expect_contains(refusal("empty.h5"), "is empty");
  write_bytes(folder / "text.h5", "Once upon a time there was a file that was not a shard.\n");
  expect_contains(refusal("text.h5"), "does not start with the HDF5 signature");
  write_bytes(folder / "short.h5", "\x89HDF");
  expect_contains(refusal("short.h5"), "is truncated");
}

TEST(BrokenShard, WithAnotherSuperblockIsRefused) {
  TemporaryFolder folder;
  const std::string path = folder / "a.h5", whole = bytes_of(write_shard(path, {4}));
  auto refusal = [&](size_t at, char value) {
    std::string bytes = whole;
    bytes[at] = value;
    write_bytes(path, bytes);
    return message_of<DataError>([&] { TokenShard{path}; });
  };
  expect_contains(refusal(8, 1), "superblock version 1 is not supported");
  expect_contains(refusal(8, 4), "superblock version 4 is not supported");
  expect_contains(refusal(9, 4), "expected offsets and lengths of 8 bytes, found 4 and 8");
  expect_contains(refusal(11, 5), "did not close the file properly");
  expect_contains(refusal(12, 1), "checksum");
}

TEST(BrokenShard, ThatWasNotClosedIsRefused) {
  TemporaryFolder folder;
  const std::string path = write_hdf5(folder / "a.h5", {.version = H5F_LIBVER_V110});
  const pid_t child = ::fork();
  if (child == 0) {
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, access);
    H5Fflush(file, H5F_SCOPE_GLOBAL);
    ::_exit(file < 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  expect_contains(message_of<DataError>([&] { TokenShard{path}; }), "did not close the file properly");
}

// Everything but tokens and offsets lies under a checksum, so nothing else can change unnoticed.
TEST(BrokenShard, IsNeverReadWithADamagedByteOutsideItsData) {
  TemporaryFolder folder;
  const std::string path = folder / "a.h5", whole = bytes_of(write_shard(path, {40, 2, 70}));
  std::string token_bytes;
  for (uint32_t token : read_all(TokenShard(path)))
    token_bytes += {static_cast<char>(token), static_cast<char>(token >> 8)};
  const int64_t offsets[] = {0, 40, 42, 112};
  const size_t tokens_at = whole.find(token_bytes);
  const size_t offsets_at = whole.find(std::string(reinterpret_cast<const char*>(offsets), sizeof offsets));
  ASSERT_NE(tokens_at, std::string::npos);
  ASSERT_NE(offsets_at, std::string::npos);
  std::mt19937 random(3);
  for (size_t at = random() % 4; at < whole.size(); at += 1 + random() % 7) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 + random() % 255));
    write_bytes(path, bytes);
    bool was_read = true;
    try {
      read_all(TokenShard(path));
    } catch (const DataError& e) {
      was_read = false;
      expect_contains(e.what(), path);
    }
    const bool is_data =
        at - tokens_at < token_bytes.size() || at - offsets_at < sizeof offsets;  // wraps around below their start
    EXPECT_TRUE(is_data || !was_read) << "byte " << at;
  }
}

// Superblock 0 has no checksums: a damaged file may be read, but never crashes.
TEST(BrokenShard, OfAnOldVersionNeverCrashes) {
  TemporaryFolder folder;
  const std::string path = folder / "a.h5", whole = bytes_of(write_hdf5(path, ShardSpec{}));
  std::mt19937 random(4);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string bytes = whole;
    for (int n = 0; n <= i % 3; ++n) bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
    write_bytes(path, bytes);
    try {
      read_all(TokenShard(path));
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10);
}

// ---- What happens to a file that is open

TEST(OpenShard, ThatIsCutNamesTheMissingBytes) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", {40});
  const TokenShard shard(path);
  std::filesystem::resize_file(path, 100);
  expect_contains(message_of<DataError>([&] { read_all(shard); }), path + ": was cut after it had been opened: bytes");
}

TEST(OpenShard, IsReadAgainWhenAReadFails) {
  TemporaryFolder folder;
  const std::string path = write_shard(folder / "a.h5", {40});
  const TokenShard shard(path);
  const std::vector<uint32_t> expected = read_all(shard);
  failing_reads = 2;
  EXPECT_EQ(read_all(shard), expected);
  failing_reads = 3;
  expect_contains(message_of<DataError>([&] { read_all(shard); }), path + ": cannot read 80 bytes at byte ");
  EXPECT_EQ(failing_reads, 0);
}

}  // namespace
}  // namespace braid
