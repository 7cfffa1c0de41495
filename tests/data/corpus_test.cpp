#include <fcntl.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

#include "data/corpus/convert.h"
#include "data/corpus/dataset_manifest.h"
#include "data/corpus/dataset_writer.h"
#include "data/corpus/megatron.h"
#include "data/corpus/merge.h"
#include "data/corpus/text_input.h"
#include "data/corpus/tokenize_corpus.h"
#include "data/token_shard.h"
#include "kernels/core/error.h"
#include "kernels/core/file_read.h"
#include "tests/file_testing.h"

// What another thread would say of a read of this test's files, asked within the call.
std::function<void()> within_read;
extern "C" ssize_t read(int fd, void* data, size_t bytes) {
  if (within_read) within_read();
  return syscall(SYS_read, fd, data, bytes);
}

namespace braid {
namespace {

namespace fs = std::filesystem;

using braid::testing::bytes_of;
using braid::testing::message_of;

std::string gzipped(const std::string& text) {
  std::string out(compressBound(text.size()) + 64, '\0');
  z_stream z{};
  deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&z, Z_FINISH), Z_STREAM_END);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

std::string zstandard(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

class Corpus : public braid::testing::FolderTest {
 protected:
  std::string write(const std::string& name, const std::string& bytes) const {
    fs::create_directories(fs::path(path(name)).parent_path());
    braid::testing::write_bytes(path(name), bytes);
    return path(name);
  }
  CorpusReport tokenize(std::vector<std::string> inputs, const std::string& out, int64_t shard_tokens = 1 << 20,
                        int jobs = 2) const {
    return tokenize_corpus(ByteTokenizer(), {std::move(inputs), path(out), "text", shard_tokens, jobs},
                           [](const CorpusProgress&) {});
  }
  std::vector<std::string> documents(const std::string& out) const {
    std::vector<std::string> texts;
    for (const std::string& file : dataset_shards(path(out))) {
      const TokenShard shard(file);
      const auto& offsets = shard.document_offsets();
      for (size_t d = 0; d + 1 < offsets.size(); ++d) {
        std::vector<uint32_t> tokens(offsets[d + 1] - offsets[d]);
        shard.read(offsets[d], offsets[d + 1], tokens.data());
        EXPECT_EQ(tokens.back(), ByteTokenizer::kEndOfDocument);
        texts.push_back(ByteTokenizer().decode(tokens));
      }
    }
    return texts;
  }
};

using Texts = std::vector<std::string>;

TEST_F(Corpus, TextThatIsReadIsNamedAndAPipeIsNot) {
  const std::string text = write("a.txt", std::string(200'000, 'x'));
  std::vector<std::string> seen;
  within_read = [&] {
    const auto call = longest_read();
    seen.push_back(call ? call->path + ": " + call->what : "nothing");
  };
  std::string bytes;
  ByteSource source(text);
  while (source.read(bytes, 1 << 20)) {}
  EXPECT_EQ(seen, (std::vector<std::string>{text + ": read 131072 bytes at byte 0",
                                            text + ": read 131072 bytes at byte 131072",
                                            text + ": read 131072 bytes at byte 200000"}));
  seen.clear();
  const std::string pipe = path("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int writer = ::open(pipe.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC);
  ASSERT_EQ(::write(writer, "x", 1), 1);
  ByteSource from_pipe(pipe);
  EXPECT_EQ(seen, std::vector<std::string>{"nothing"});
  ::close(writer);
  within_read = nullptr;
}

TEST_F(Corpus, ReadsJsonLinesTextsAndWhatIsCompressed) {
  const std::string lines = "{\"text\": \"one\"}\n\n{\"id\": 3, \"text\": \"zw\\u00f6lf\\n\"}\r\n{\"text\": \"\"}";
  write("in/a.jsonl", lines);
  write("in/b.jsonl.gz", gzipped("{\"text\":\"g1\"}\n") + gzipped("{\"text\":\"g2\"}\n"));
  write("in/c.jsonl.zst", zstandard("{\"text\":\"z1\"}\n") + zstandard("{\"text\":\"z2\"}"));
  write("in/d.txt", "a text\nof two lines\n");
  write("in/sub/e.md.gz", gzipped("packed"));
  const CorpusReport report = tokenize({path("in")}, "out");
  EXPECT_EQ(documents("out"),
            (Texts{"one", "zwölf\n", "", "g1", "g2", "z1", "z2", "a text\nof two lines\n", "packed"}));
  EXPECT_EQ(report.manifest.num_documents(), 9);
  EXPECT_EQ(report.manifest.unreadable, 0);
  EXPECT_EQ(verify_dataset(path("out")), Texts{});
}

TEST_F(Corpus, CountsAndNamesWhatItCannotRead) {
  write("in/a.jsonl", "{\"text\": \"good\"}\nnot json\n{\"body\": 1}\n{\"text\": 7}\n[1]\n{\"text\": \"a\xff\"}\n");
  write("in/b.bin", std::string("a\0b", 3));
  write("in/c.txt", "\xff\xfeh\x01");
  const CorpusReport report = tokenize({path("in")}, "out");
  EXPECT_EQ(documents("out"), (Texts{"good", "a\uFFFD"}));
  EXPECT_EQ(report.manifest.unreadable, 6);
  EXPECT_EQ(report.manifest.repaired, 1);
  const std::string a = path("in/a.jsonl");
  EXPECT_EQ(report.complaints,
            (Texts{a + ":2: is not JSON", a + ":3: has no key text", a + ":4: text is number, not a string",
                   a + ":5: is no JSON object", path("in/b.bin") + ": holds a NUL byte at 1, so it is not text",
                   path("in/c.txt") + ": is UTF-16, not UTF-8"}));
  EXPECT_EQ(read_manifest(path("out")).unreadable, 6);
}

TEST_F(Corpus, CountsWhatIsNoFileInAFolderAndRefusesItByItself) {
  write("in/a.txt", "a");
  fs::create_symlink(path("nowhere"), path("in/b.txt"));
  ASSERT_EQ(mkfifo(path("in/c.txt").c_str(), 0600), 0);
  const CorpusReport report = tokenize({path("in")}, "out");
  EXPECT_EQ(documents("out"), Texts{"a"});
  EXPECT_EQ(report.manifest.unreadable, 2);
  const std::string broken = path("in/b.txt") + ": does not exist (a broken link)";
  EXPECT_EQ(report.complaints, (Texts{broken, path("in/c.txt") + ": is neither a file nor a folder"}));
  EXPECT_EQ(message_of<DataError>([&] { tokenize({path("in/b.txt")}, "o1"); }), broken);
  EXPECT_EQ(message_of<DataError>([&] { paths_of(list_inputs({path("in")})); }), broken) << "texts of a training";
}

TEST_F(Corpus, TakesAFileOnceWhateverLeadsToIt) {
  write("in/a.txt", "a");
  write("other/b.txt", "b");
  fs::create_symlink(path("in/a.txt"), path("in/again.txt"));
  fs::create_directory_symlink(path("other"), path("in/linked"));
  fs::create_directory_symlink(path("in"), path("in/loop"));
  const CorpusReport report = tokenize({path("in"), path("in/a.txt"), path("in")}, "out");
  EXPECT_EQ(documents("out"), (Texts{"a", "b"}));
  EXPECT_EQ(report.manifest.met_again, 2);
}

TEST_F(Corpus, RefusesWhatIsDamagedOrNotThere) {
  write("in/cut.jsonl.gz", gzipped(std::string(1000, 'x')).substr(0, 15));
  EXPECT_NE(
      message_of<DataError>([&] { tokenize({path("in/cut.jsonl.gz")}, "o1"); }).find("the gzip file is cut short"),
      std::string::npos);
  write("in/cut.jsonl.zst", zstandard(std::string(1000, 'x')).substr(0, 12));
  EXPECT_NE(message_of<DataError>([&] { tokenize({path("in/cut.jsonl.zst")}, "o2"); }).find("zstd file is"),
            std::string::npos);
  EXPECT_NE(message_of<DataError>([&] { tokenize({path("nowhere")}, "o3"); }).find("nowhere: does not exist"),
            std::string::npos);
  write("in/none.jsonl", "{}\n");
  EXPECT_NE(message_of<DataError>([&] {
              tokenize({path("in/none.jsonl")}, "o4");
            }).find("no document in 1 files; the first: "),
            std::string::npos);
}

std::vector<std::string> random_lines(uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  std::vector<std::string> lines;
  for (int i = 0; i < count; ++i)
    lines.push_back(random() % 20 == 0
                        ? "no json"
                        : concat("{\"text\": \"", i, std::string(random() % 3000, char('a' + random() % 26)), "\"}"));
  return lines;
}

TEST_F(Corpus, GivesTheSameBytesForAnyNumberOfJobs) {
  for (int file = 0; file < 3; ++file) {
    std::string text;
    for (const std::string& line : random_lines(file, 400)) text += line + "\n";
    write(concat("in/", file, ".jsonl"), text);
  }
  tokenize({path("in")}, "one", 100000, 1);
  tokenize({path("in")}, "four", 100000, 4);
  const DatasetManifest m = read_manifest(path("one"));
  EXPECT_GT(m.shards.size(), 5u);
  EXPECT_EQ(bytes_of(path("one/dataset.json")), bytes_of(path("four/dataset.json")));
  EXPECT_EQ(message_of<DataError>([&] { tokenize({path("in")}, "one", 99999); }).substr(path("one").size()),
            ": holds a dataset already, of other inputs or settings; choose another folder, or remove it");
  EXPECT_TRUE(tokenize({path("in")}, "one", 100000).was_complete);
}

// Killed at random moments, it ends with the same bytes as one that never was.
TEST_F(Corpus, GoesOnAfterAKillWithoutLossOrDoubling) {
  for (int file = 0; file < 4; ++file) {
    std::string text;
    for (const std::string& line : random_lines(file, 300)) text += line + "\n";
    write(concat("in/", file, ".jsonl"), file == 2 ? gzipped(text) : text);
    write(concat("in/", file, ".txt"), text);
  }
  tokenize({path("in")}, "whole", 60000);
  std::mt19937_64 random(5);
  int kills = 0, resumed = 0;
  for (int run = 0; run < 4; ++run) {
    const std::string out = concat("killed-", run);
    for (bool is_done = false; !is_done;) {
      const int calls = static_cast<int>(random() % 6);
      const pid_t child = ::fork();
      if (child == 0) {
        int left = calls;
        const CorpusReport report =
            tokenize_corpus(ByteTokenizer(), {{path("in")}, path(out), "text", 60000, 2}, [&](const CorpusProgress&) {
              if (left-- == 0) ::kill(::getpid(), SIGKILL);
            });
        ::_exit(report.documents_before > 0 ? 1 : 0);
      }
      int status = 0;
      ::waitpid(child, &status, 0);
      is_done = WIFEXITED(status);
      kills += !is_done;
      resumed += is_done && WEXITSTATUS(status) == 1;
    }
    EXPECT_EQ(bytes_of(path(out + "/dataset.json")), bytes_of(path("whole/dataset.json")));
    EXPECT_EQ(verify_dataset(path(out)), Texts{});
    EXPECT_FALSE(fs::exists(path(out + "/progress.json")));
  }
  EXPECT_GT(kills, 5);
  EXPECT_GT(resumed, 0);
}

// Texts that the reader has long read are not done before they are tokenized.
TEST_F(Corpus, ProgressIsOfWhatIsDone) {
  std::vector<int64_t> expected, bytes;
  for (int i = 1; i <= 5; ++i) {
    write(concat("in/", i, ".txt"), std::string(static_cast<size_t>(i) * 100, 'x'));
    expected.push_back((expected.empty() ? 0 : expected.back()) + i * 100);
  }
  tokenize_corpus(ByteTokenizer(), {{path("in")}, path("out"), "text", 1 << 20, 1}, [&](const CorpusProgress& p) {
    EXPECT_EQ(p.documents, std::ssize(bytes) + 1);
    EXPECT_EQ(p.all_bytes, 1500);
    bytes.push_back(p.bytes);
  });
  EXPECT_EQ(bytes, expected);
}

TEST_F(Corpus, FindsEveryBitFlipAndTruncation) {
  std::string text;
  for (const std::string& line : random_lines(1, 60)) text += line + "\n";
  tokenize({write("a.jsonl", text)}, "out", 40000);
  const DatasetManifest m = read_manifest(path("out"));
  ASSERT_GT(m.shards.size(), 1u);
  std::mt19937_64 random(7);
  int named_tokens = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::string file = path("out/" + m.shards[random() % m.shards.size()].file);
    const std::string good = bytes_of(file);
    std::string bad = good;
    bad[random() % bad.size()] ^= static_cast<char>(1 << random() % 8);
    std::ofstream(file, std::ios::binary) << bad;
    const Texts wrong = verify_dataset(path("out"));
    ASSERT_FALSE(wrong.empty()) << "flip " << i;
    EXPECT_TRUE(
        std::any_of(wrong.begin(), wrong.end(), [&](auto& w) { return w.starts_with(file + ": block 0 is damaged"); }));
    named_tokens += std::any_of(wrong.begin(), wrong.end(), [](auto& w) { return w.find(", tokens 0 to ") != w.npos; });
    std::ofstream(file, std::ios::binary) << good;
  }
  EXPECT_GT(named_tokens, 900);
  for (int i = 0; i < 200; ++i) {
    const std::string file = path("out/" + m.shards[random() % m.shards.size()].file);
    const std::string good = bytes_of(file);
    std::ofstream(file, std::ios::binary) << good.substr(0, random() % good.size());
    const Texts wrong = verify_dataset(path("out"));
    ASSERT_EQ(wrong.size(), 1u) << "truncation " << i;
    EXPECT_NE(message_of<DataError>([&] { dataset_shards(path("out")); }), "nothing was thrown");
    std::ofstream(file, std::ios::binary) << good;
  }
  EXPECT_EQ(verify_dataset(path("out")), Texts{});
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string megatron_index(uint8_t type, const std::vector<int32_t>& lengths, const std::vector<int64_t>& documents,
                           int bytes) {
  std::vector<int64_t> pointers;
  int64_t at = 0;
  for (int32_t length : lengths) pointers.push_back(at), at += int64_t{length} * bytes;
  return std::string("MMIDIDX\0\0", 9) + raw<uint64_t>({1}) + static_cast<char>(type) +
         raw<int64_t>({static_cast<int64_t>(lengths.size()), static_cast<int64_t>(documents.size())}) + raw(lengths) +
         raw(pointers) + raw(documents);
}

using Ids = std::vector<std::vector<uint32_t>>;

// The documents of a dataset without damage.
Ids ids_of(const std::string& folder) {
  Ids documents;
  for (const std::string& file : dataset_shards(folder)) {
    const TokenShard shard(file);
    const auto& offsets = shard.document_offsets();
    for (size_t d = 0; d + 1 < offsets.size(); ++d) {
      documents.emplace_back(offsets[d + 1] - offsets[d]);
      shard.read(offsets[d], offsets[d + 1], documents.back().data());
    }
  }
  EXPECT_EQ(verify_dataset(folder), Texts{});
  return documents;
}

TEST_F(Corpus, ConvertsTokensOfOthers) {
  const auto ids = [&](const std::string& out) { return ids_of(path(out)); };
  // Three sequences in two documents that end with 9; one that ends otherwise; and the same as 32-bit tokens.
  write("m.bin", raw<uint16_t>({1, 2, 3, 9, 4, 9}));
  write("m.idx", megatron_index(8, {2, 2, 2}, {0, 2, 3}, 2));
  DatasetManifest m = convert_tokens({.from = path("m.idx"), .to = path("m")});
  EXPECT_EQ(ids("m"), (Ids{{1, 2, 3, 9}, {4, 9}}));
  EXPECT_EQ(m.end_of_document, 9);
  EXPECT_EQ(m.vocab_size, 10);
  write("n.bin", raw<int32_t>({1, 2, 70000, 9, 4, 8}));
  write("n.idx", megatron_index(4, {4, 0, 2}, {0, 1, 2, 3}, 4));
  m = convert_tokens({.from = path("n.bin"), .to = path("n"), .shard_tokens = 3});
  EXPECT_EQ(ids("n"), (Ids{{1, 2, 70000, 9, 70001}, {70001}, {4, 8, 70001}}));
  EXPECT_EQ(m.shards.size(), 2u);

  std::vector<int32_t> header(256);
  header[0] = 20240520, header[1] = 1, header[2] = 7;
  write("gpt2.bin", raw(header) + raw<uint16_t>({50256, 5, 6, 50256, 50256, 7, 8}));
  m = convert_tokens({.from = path("gpt2.bin"), .to = path("gpt2")});
  EXPECT_EQ(ids("gpt2"), (Ids{{5, 6, 50256}, {50256}, {7, 8, 50256}}));
  EXPECT_EQ(m.vocab_size, 50257);

  std::string numpy("\x93NUMPY\x01\0", 8);
  std::string dictionary = "{'descr': '<u4', 'fortran_order': False, 'shape': (5,), }";
  dictionary.resize(117, ' ');
  numpy += raw<uint16_t>({118}) + dictionary + "\n";
  write("a.npy", numpy + raw<uint32_t>({1, 0, 2, 3, 0}));
  convert_tokens({.from = path("a.npy"), .to = path("a"), .end_of_document = 0});
  EXPECT_EQ(ids("a"), (Ids{{1, 0}, {2, 3, 0}}));
  write("r.bin", raw<uint16_t>({1, 0, 2, 3}));
  convert_tokens({.from = path("r.bin"), .to = path("r"), .dtype = "u16", .end_of_document = 0});
  EXPECT_EQ(ids("r"), (Ids{{1, 0}, {2, 3, 0}}));

  const auto error = [&](ConvertOptions options) {
    options.to = path("error");
    return message_of<DataError>([&] { convert_tokens(options); });
  };
  using braid::testing::expect_contains;
  expect_contains(error({.from = path("r.bin"), .end_of_document = 0}), "say --dtype u16 or u32");
  expect_contains(error({.from = path("r.bin"), .dtype = "u16"}), "--end-of-document");
  expect_contains(error({.from = path("a.npy"), .end_of_document = 0, .vocab_size = 3}),
                  "token 3 is outside the vocabulary of 3");
  write("m.bin", raw<uint16_t>({1, 2, 3, 9, 4}));
  expect_contains(error({.from = path("m.idx")}), "has 10 bytes, but");
  write("m.idx", megatron_index(8, {2, 2, 2}, {0, 4, 3}, 2).substr(0, 40));
  expect_contains(error({.from = path("m.idx")}), "which do not fit its 3 sequences");
  write("m.bin", raw<uint16_t>({1, 2, 3, 9, 4, 9}));
  write("m.idx", megatron_index(8, {2, 2, 2}, {0, 4, 3}, 2));
  expect_contains(error({.from = path("m.idx")}), "its document marks do not go up from 0");
  write("m.idx", megatron_index(6, {2, 2, 2}, {0, 2, 3}, 2));
  expect_contains(error({.from = path("m.idx")}), "type 6, which are no ids");
  write("n.bin", raw<int32_t>({1, 2, -7, 9, 4, 8}));
  expect_contains(error({.from = path("n.bin")}), "token 2 is negative");
  write("gpt2.bin", raw(header) + raw<uint16_t>({1, 2}));
  expect_contains(error({.from = path("gpt2.bin")}), "its header says 7 tokens");
}

TEST_F(Corpus, MergesWhatItHasSplit) {
  Ids all;
  std::mt19937 random(3);
  for (int d = 0; d < 500; ++d) all.emplace_back(random() % 40, static_cast<uint32_t>(d % 256));
  all[7].assign(100'000, 5);  // longer than a block
  DatasetManifest m;
  m.tokenizer = "byte", m.tokenizer_digest = ByteTokenizer().digest();
  m.vocab_size = 258, m.end_of_document = 256;
  fs::create_directory(path("set"));
  DatasetWriter writer(path("set"), m, 20'000);
  for (const auto& document : all) {
    writer.append(document);
    writer.end_document();
  }
  writer.finish();
  ASSERT_EQ(m.shards.size(), 2u);

  const std::vector<SplitPart> parts =
      split_dataset({.from = path("set"), .to = path("parts"), .parts = 3, .shard_tokens = 3000});
  ASSERT_EQ(parts.size(), 3u);
  std::vector<std::string> folders;
  int64_t documents = 0;
  for (const SplitPart& part : parts) {
    folders.push_back(part.folder);
    documents += part.manifest.num_documents();
    EXPECT_GT(part.manifest.num_documents(), 0);
    EXPECT_EQ(verify_dataset(part.folder), Texts{});
  }
  EXPECT_EQ(documents, 500);
  EXPECT_EQ(parts[0].manifest.num_documents(), 8);  // up to the long one; the others share what is left
  EXPECT_NEAR(double(parts[1].manifest.num_tokens()), double(parts[2].manifest.num_tokens()), 50);
  const DatasetManifest merged = merge_datasets(folders, path("merged"), 20'000);
  ASSERT_EQ(merged.shards.size(), 2u);
  for (const auto& shard : m.shards)
    EXPECT_EQ(bytes_of(path("merged/" + shard.file)), bytes_of(path("set/" + shard.file)));
  EXPECT_EQ(verify_dataset(path("merged")), Texts{});

  const std::vector<SplitPart> held = split_dataset({.from = path("set"), .to = path("held"), .held_out = 0.1});
  EXPECT_EQ(held[0].manifest.num_documents() + held[1].manifest.num_documents(), 500);
  EXPECT_NEAR(double(held[1].manifest.num_documents()), 50, 20);
  Ids both = ids_of(held[0].folder), expected = ids_of(path("set"));
  for (auto& document : ids_of(held[1].folder)) both.push_back(document);
  std::sort(both.begin(), both.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(both, expected);

  // Loose shards, in the order named.
  merge_datasets({path("set/shard-00001.h5"), path("set/shard-00000.h5")}, path("loose"), 1 << 20);
  EXPECT_EQ(ids_of(path("loose"))[500 - parts[0].manifest.num_documents()].size(), all[0].size() + 1);

  using braid::testing::expect_contains;
  const auto error = [](auto&& body) { return message_of<DataError>(body); };
  expect_contains(error([&] {
                    merge_datasets({path("set"), path("loose"), path("set")}, path("x"), 1 << 20);
                  }),
                  "is in " + path("set") + " too");
  expect_contains(error([&] { split_dataset({.from = path("set"), .to = path("x"), .parts = 501}); }),
                  "there are more parts, 501");
  expect_contains(error([&] { split_dataset({.from = parts[0].folder, .to = path("x"), .held_out = 1e-6}); }),
                  "held-out would have none");
  tokenize({write("a.txt", "abc")}, "bytes");
  DatasetManifest other = read_manifest(path("bytes"));
  convert_tokens(
      {.from = write("o.bin", raw<uint16_t>({1, 0})), .to = path("other"), .dtype = "u16", .end_of_document = 0});
  expect_contains(error([&] {
                    merge_datasets({path("set"), path("other")}, path("x"), 1 << 20);
                  }),
                  "was made with tokenizer unknown");
  std::string bytes = bytes_of(path("set/shard-00001.h5"));
  bytes[bytes.size() / 2] ^= 1;
  write("set/shard-00001.h5", bytes);
  expect_contains(error([&] { merge_datasets({path("set")}, path("x"), 1 << 20); }), "block 0 is damaged");
  EXPECT_FALSE(fs::exists(path("x")));
}

TEST_F(Corpus, WritesMegatronsFilesAndReadsThemBack) {
  for (const int64_t vocab : {65'499, 65'500}) {
    SCOPED_TRACE(vocab);
    const uint8_t type = vocab < 65'500 ? 8 : 4;
    const std::string name = std::to_string(vocab);
    write(name + ".raw", raw<uint32_t>({1, 2, 0, 0, static_cast<uint32_t>(vocab - 1), 0}));
    convert_tokens({.from = path(name + ".raw"),
                    .to = path(name),
                    .dtype = "u32",
                    .end_of_document = 0,
                    .vocab_size = vocab,
                    .shard_tokens = 4});
    EXPECT_EQ(write_megatron(path(name), path(name + "-m.idx")).num_documents(), 3);
    EXPECT_EQ(bytes_of(path(name + "-m.idx")), megatron_index(type, {3, 1, 2}, {0, 1, 2, 3}, type == 8 ? 2 : 4));
    EXPECT_EQ(bytes_of(path(name + "-m.bin")), type == 8
                                                   ? raw<uint16_t>({1, 2, 0, 0, static_cast<uint16_t>(vocab - 1), 0})
                                                   : raw<int32_t>({1, 2, 0, 0, static_cast<int32_t>(vocab - 1), 0}));
    convert_tokens(
        {.from = path(name + "-m.bin"), .to = path(name + "-again"), .vocab_size = vocab, .shard_tokens = 4});
    for (const auto& shard : read_manifest(path(name)).shards)
      EXPECT_EQ(bytes_of(path(name + "-again/" + shard.file)), bytes_of(path(name + "/" + shard.file)));
    braid::testing::expect_contains(message_of<IoError>([&] { write_megatron(path(name), path(name + "-m.bin")); }),
                                    "is there already");
  }
}

TEST_F(Corpus, ReadsDatatrovesTokens) {
  const std::string ends = raw<int64_t>({3, 3, 5});
  for (const bool is_wide : {false, true}) {
    const std::string out = is_wide ? "wide" : "narrow";
    write(out + ".ds", is_wide ? raw<uint32_t>({1, 2, 9, 4, 9}) : raw<uint16_t>({1, 2, 9, 4, 9}));
    write(out + ".ds.index", ends);
    convert_tokens({.from = path(out + ".ds"), .to = path(out), .end_of_document = 9});
    EXPECT_EQ(ids_of(path(out)), (Ids{{1, 2, 9}, {9}, {4, 9}}));
  }
  write("narrow.ds.index", raw<int64_t>({3, 2, 5}));
  braid::testing::expect_contains(
      message_of<DataError>([&] { convert_tokens({.from = path("narrow.ds"), .to = path("x")}); }), "do not go up");
  write("narrow.ds.index", raw<int64_t>({3, 4}));
  braid::testing::expect_contains(
      message_of<DataError>([&] { convert_tokens({.from = path("narrow.ds"), .to = path("x")}); }), "names 4 tokens");
}

// ---- HDF5 that is no shard

struct Hdf5Spec {
  hid_t type = H5T_STD_U16LE;
  hsize_t chunk = 0;
  bool is_compressed = false, has_checksums = false, has_offsets = true, has_attributes = true;
  std::vector<int64_t> tokens = {1, 2, 9, 3, 9};
};

void write_hdf5(const std::string& path, const Hdf5Spec& spec) {
  fs::remove(path);
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const auto dataset = [&](const char* name, hid_t type, const std::vector<int64_t>& values) {
    const hsize_t size = values.size();
    const hid_t space = H5Screate_simple(1, &size, nullptr), creation = H5Pcreate(H5P_DATASET_CREATE);
    const hsize_t chunk = std::min(spec.chunk, size);
    if (chunk > 0) H5Pset_chunk(creation, 1, &chunk);
    if (spec.is_compressed) H5Pset_shuffle(creation), H5Pset_deflate(creation, 4);
    if (spec.has_checksums) H5Pset_fletcher32(creation);
    const hid_t id = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    EXPECT_GE(H5Dwrite(id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
    H5Dclose(id), H5Pclose(creation), H5Sclose(space);
  };
  dataset("tokens", spec.type, spec.tokens);
  if (spec.has_offsets) dataset("document_offsets", H5T_STD_I32BE, {0, 3, std::ssize(spec.tokens)});
  if (spec.has_attributes) {
    const hid_t space = H5Screate(H5S_SCALAR), text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, H5T_VARIABLE);
    const auto attribute = [&](const char* name, hid_t type, const void* value) {
      const hid_t id = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
      EXPECT_GE(H5Awrite(id, type, value), 0);
      H5Aclose(id);
    };
    const char *name = "words", *digest = "0011aabb";
    const int32_t vocab = 12, end = 9;
    attribute("tokenizer", text, &name), attribute("tokenizer_digest", text, &digest);
    attribute("vocab_size", H5T_NATIVE_INT32, &vocab), attribute("end_of_document", H5T_NATIVE_INT32, &end);
    H5Tclose(text), H5Sclose(space);
  }
  H5Fclose(file);
}

TEST_F(Corpus, ConvertsHdf5OfEveryKind) {
  const hid_t types[] = {H5T_STD_U16LE, H5T_STD_U16BE, H5T_STD_I32LE, H5T_STD_I32BE,
                         H5T_STD_I64LE, H5T_STD_I64BE, H5T_STD_U64BE};
  int number = 0;
  for (const hid_t type : types) {
    for (const hsize_t chunk : {0, 2, 5}) {
      const std::string name = std::to_string(number++);
      write_hdf5(path(name + ".h5"),
                 {.type = type, .chunk = chunk, .is_compressed = chunk == 2, .has_checksums = chunk == 5});
      braid::testing::expect_contains(
          message_of<DataError>([&] { TokenShard shard(path(name + ".h5")); }),
          "; other HDF5 files are read by `braid data convert --from " + path(name + ".h5") + " --to DIR`");
      const DatasetManifest m = convert_tokens({.from = path(name + ".h5"), .to = path(name)});
      EXPECT_EQ(ids_of(path(name)), (Ids{{1, 2, 9}, {3, 9}}));
      EXPECT_EQ(m.tokenizer, "words");
      EXPECT_EQ(m.tokenizer_digest, "0011aabb");
      EXPECT_EQ(m.vocab_size, 12);
    }
  }
  write_hdf5(path("bare.h5"), {.chunk = 2, .has_offsets = false, .has_attributes = false});
  const auto error = [&](ConvertOptions options) {
    options.from = path("bare.h5");
    options.to = path("x");
    return message_of<DataError>([&] { convert_tokens(options); });
  };
  using braid::testing::expect_contains;
  expect_contains(error({}), "does not say where documents end");
  convert_tokens({.from = path("bare.h5"), .to = path("bare"), .end_of_document = 9});
  EXPECT_EQ(ids_of(path("bare")), (Ids{{1, 2, 9}, {3, 9}}));
  const ByteTokenizer bytes;
  write_hdf5(path("bare.h5"), {});
  expect_contains(error({.tokenizer = &bytes}), "was made with tokenizer words 0011aabb, not with the byte");
  write_hdf5(path("bare.h5"), {.type = H5T_STD_I32LE, .tokens = {1, -2, 9, 3, 9}});
  expect_contains(error({}), "token 1 is negative");
  write_hdf5(path("bare.h5"), {.type = H5T_STD_U64LE, .tokens = {1, int64_t{1} << 40, 9, 3, 9}});
  expect_contains(error({}), "token 1 is too large");
  write_hdf5(path("bare.h5"), {.type = H5T_IEEE_F32LE});
  expect_contains(error({}), "tokens: expected integers");
  write_hdf5(path("bare.h5"), {.tokens = {1, 2, 9, 3, 77}});
  expect_contains(error({}), "token 77 is outside the vocabulary of 12");
  write("bare.h5", "no HDF5 at all");
  expect_contains(error({}), "bare.h5: cannot be opened: HDF5: ");
}

// What libhdf5 does with a damaged file, up to a crash, ends in one sentence, or in tokens that are ids.
TEST_F(Corpus, SurvivesDamagedHdf5) {
  write_hdf5(path("good.h5"), {.chunk = 2, .is_compressed = true});
  const std::string good = bytes_of(path("good.h5"));
  std::mt19937 random(11);
  int refused = 0;
  for (int i = 0; i < 150; ++i) {
    std::string bad = good;
    for (int flips = 1 + static_cast<int>(random() % 3); flips > 0; --flips)
      bad[random() % 2200 % bad.size()] ^= static_cast<char>(1 << random() % 8);
    if (i % 5 == 0) bad.resize(random() % bad.size());
    write("bad.h5", bad);
    fs::remove_all(path("out"));
    const std::string message =
        message_of<DataError>([&] { convert_tokens({.from = path("bad.h5"), .to = path("out")}); });
    if (message.empty()) EXPECT_EQ(verify_dataset(path("out")), Texts{});
    else ++refused, braid::testing::expect_contains(message, "bad.h5");
  }
  EXPECT_GT(refused, 30);
}

TEST_F(Corpus, AManifestLeadsNowhereElse) {
  tokenize({write("a.jsonl", "{\"text\": \"abc\"}")}, "out");
  const std::string good = bytes_of(path("out/dataset.json"));
  const auto error = [&](const std::string& from, const std::string& to) {
    std::string bad = good;
    EXPECT_NE(bad.find(from), bad.npos) << from;
    write("out/dataset.json", bad.replace(bad.find(from), from.size(), to));
    return message_of<DataError>([&] { read_manifest(path("out")); });
  };
  EXPECT_NE(error("shard-00000.h5", "../x.h5").find("is not the name of a file"), std::string::npos);
  EXPECT_NE(error("\"tokens\": 4", "\"tokens\": 5").find("tokens is 5, but its shards have 4"), std::string::npos);
  EXPECT_NE(error("\"tokens\": 4", "\"tokens\": -4").find("expected a count"), std::string::npos);
  EXPECT_NE(error("braid-dataset", "other").find("format is \"other\""), std::string::npos);
  EXPECT_NE(error("\"shards\"", "\"shads\"").find("is damaged: key 'shards' not found"), std::string::npos);
  const auto refusal = [&](const std::string& name) {
    return message_of<DataError>([&] { read_manifest(path(name)); });
  };
  EXPECT_EQ(refusal("nothing"), path("nothing") + ": does not exist");
  write("in/text.txt", "a");
  EXPECT_NE(refusal("in").find("in: is no dataset: it holds no dataset.json"), std::string::npos);
  EXPECT_NE(refusal("in/text.txt").find("text.txt: is a file, but a dataset is a folder"), std::string::npos);
}

}  // namespace
}  // namespace braid
