#include "trainer/checkpoint/manifest.h"

#include <sys/resource.h>

#include "tests/trainer/checkpoint/checkpoint_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

Manifest example() {
  Manifest m;
  m.info.step = 12;
  m.info.tokens = 9007199254740993;
  m.info.batch_sizes = {{0, 8}, {5, 16}};
  m.info.left_out = {{3, 24}, {7, 16}};
  m.info.recent_losses = {5.25, 0.1};
  m.info.recent_grad_norms = {1e-30, 3};
  m.info.skipped_steps = {2, 4};
  m.info.config_yaml = "run: {steps: 3}\n# \"quoted\" and ünïcode\n";
  m.info.build_id = "test build";
  m.info.data_digest = "abc";
  m.info.parameter_table = "table\n";
  m.info.num_ranks = 2;
  m.info.expert_parallel = 2;
  m.files = {{"rank-00000.safetensors", 200, std::string(64, 'a'), 0xabcd}, {"rank-100001.safetensors", 300, "", 7}};
  m.add("weights/a", DType::kF32, {3, 5}, {4, 15, "rank-100001.safetensors", 128, {0xffffffff}});
  m.add("weights/a", DType::kF32, {3, 5}, {0, 4, "rank-00000.safetensors", 96, {1}});
  m.add("b", DType::kI64, {2}, {0, 2, "rank-00000.safetensors", 112, {2}});
  m.add("long", DType::kU8, {2 * kDigestBlockBytes + 1},
        {0, 2 * kDigestBlockBytes + 1, "rank-100001.safetensors", 172, {3, 4, 0x12345678}});
  m.add("empty", DType::kF64, {0, 5}, {});
  return m;
}

std::string refusal(const std::string& text) {
  return message_of<CheckpointError>([&] { Manifest::parse(text, "PATH"); });
}

TEST(Manifest, ReadsBackWhatItWrote) {
  const std::string text = example().to_text();
  const Manifest m = Manifest::parse(text, "PATH"), expected = example();
  m.check_coverage("PATH");
  EXPECT_EQ(m.info.step, 12);
  EXPECT_EQ(m.info.tokens, 9007199254740993);
  EXPECT_EQ(m.info.batch_sizes, expected.info.batch_sizes);
  EXPECT_EQ(m.info.left_out, expected.info.left_out);
  EXPECT_EQ(m.info.recent_losses, expected.info.recent_losses);
  EXPECT_EQ(m.info.recent_grad_norms, expected.info.recent_grad_norms);
  EXPECT_EQ(m.info.skipped_steps, expected.info.skipped_steps);
  EXPECT_EQ(m.info.config_yaml, expected.info.config_yaml);
  EXPECT_EQ(m.info.build_id, "test build");
  EXPECT_EQ(m.info.data_digest, "abc");
  EXPECT_EQ(m.info.parameter_table, "table\n");
  EXPECT_EQ(m.info.num_ranks, 2);
  EXPECT_EQ(m.info.expert_parallel, 2);
  ASSERT_EQ(m.files.size(), 2u);
  EXPECT_EQ(m.files[1].name, "rank-100001.safetensors");
  EXPECT_EQ(m.files[0].bytes, 200);
  EXPECT_EQ(m.files[0].sha256, std::string(64, 'a'));
  ASSERT_EQ(m.tensors.size(), 4u);
  const auto& a = m.tensors.at("weights/a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_EQ(a.shape, Shape({3, 5}));
  ASSERT_EQ(a.extents.size(), 2u);
  EXPECT_EQ(a.extents[0].end, 4);
  EXPECT_EQ(a.extents[1].file, "rank-100001.safetensors");
  EXPECT_EQ(a.extents[1].offset, 128);
  EXPECT_EQ(a.extents[1].crc32c, std::vector<uint32_t>{0xffffffff});
  EXPECT_EQ(m.tensors.at("long").extents[0].crc32c, (std::vector<uint32_t>{3, 4, 0x12345678}));
  EXPECT_EQ(m.files[0].header_crc32c, 0xabcdu);
  EXPECT_EQ(m.tensors.at("empty").extents.size(), 0u);
  EXPECT_EQ(m.to_text(), text);
}

// head -n -2 MANIFEST.json | sha256sum
TEST(Manifest, ItsDigestIsOfEverythingButTheLastTwoLines) {
  const std::string text = example().to_text();
  const size_t last = text.rfind('\n', text.size() - 2), digest_line = text.rfind('\n', last - 1) + 1;
  EXPECT_EQ(text.substr(last), "\n}\n");
  EXPECT_EQ(text.substr(digest_line, last - digest_line),
            "\"digest\": \"" + sha256(text.substr(0, digest_line)) + "\"");
  EXPECT_EQ(with_digest(without_digest(text)), text);
}

TEST(Manifest, EveryCutAndEveryFlippedBitIsSeen) {
  const std::string text = example().to_text();
  for (size_t length = 0; length < text.size(); ++length) ASSERT_NE(refusal(text.substr(0, length)), "") << length;
  EXPECT_NE(refusal(text + "\n"), "");
  for (size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    ASSERT_NE(refusal(flipped), "") << bit;
  }
}

TEST(Manifest, RefusesWhatItCannotUseAndSaysWhat) {
  const std::string body = without_digest(example().to_text());
  struct Case {
    std::string from, to, message;
  };
  const std::string deep(100000, '['), closed(100000, ']');
  const Case cases[] = {
      {"\"major\":1", "\"major\":2", "it has format version 2.3, this program reads 1.x; use a newer braid"},
      {"\"major\":1", "\"major\":0", "it has format version 0.3, this program reads 1.x; use the braid that wrote it"},
      {"\"major\":1", "\"major\":\"1\"", "major is no number of 0 or more"},
      {"braid-checkpoint", "something", "its format is not braid-checkpoint"},
      {"\"format\": ", "\"formal\": ", "it has no format"},
      {"\"step\": 12", "\"step\": -12", "step is no number of 0 or more"},
      {"\"step\": 12", "\"step\": 12.0", "step is no number of 0 or more"},
      {"\"step\": 12", "\"step\": 18446744073709551615", "step is no number of 0 or more"},
      {"\"step\": 12", "\"stop\": 12", "it has no step"},
      {"[[0,8],[5,16]]", "8", "batch_sizes is not a list"},
      {"[[0,8],[5,16]]", "[]", "batch_sizes is empty"},
      {"[[0,8],[5,16]]", "[[0,8,1]]", "batch_sizes has an entry that is not [steps, rows]"},
      {"[[0,8],[5,16]]", "[[1,8]]", "batch_sizes does not begin at 0 and ascend"},
      {"[[0,8],[5,16]]", "[[0,8],[0,16]]", "batch_sizes does not begin at 0 and ascend"},
      {"[[0,8],[5,16]]", "[[0,0]]", "batch_sizes does not begin at 0 and ascend, with rows in each step"},
      {"[[0,8],[5,16]]", "[[0,-8]]", "rows in batch_sizes is no number of 0 or more"},
      {"[[3,24],[7,16]]", "[[3,24],[3,16]]", "left_out does not ascend, with rows in each"},
      {"[[3,24],[7,16]]", "[[3,0]]", "left_out does not ascend, with rows in each"},
      {"[[3,24],[7,16]]", "[3]", "left_out has an entry that is not [steps, rows]"},
      {"[5.25,0.1]", "[5.25]", "recent has 1 losses and 2 grad_norms"},
      {"[5.25,0.1]", "[5.25,null]", "losses has an entry that is no number"},
      {"[2,4]", "[2,-4]", "a step in skipped_steps is no number of 0 or more"},
      {"\"build_id\": \"test build\"", "\"build_id\": 7", "build_id is not a text"},
      {"\"world\": 2", "\"world\": null", "world is no number of 0 or more"},
      {"rank-00000.safetensors\",\"sha", "../rank-00000.safetensors\",\"sha", "it names the file \"../rank-00000"},
      {"rank-00000.safetensors\",\"sha", "/etc/passwd\",\"sha", "it names the file \"/etc/passwd\""},
      {"rank-00000.safetensors\",\"sha", "rank-0000.safetensors\",\"sha", "expected rank-NNNNN.safetensors"},
      {"rank-00000.safetensors\",\"sha", "rank-0000x.safetensors\",\"sha", "expected rank-NNNNN.safetensors"},
      {"rank-00000.safetensors\",\"sha", "rank-00000.safetensors/\",\"sha", "expected rank-NNNNN.safetensors"},
      {"rank-00000.safetensors\",\"sha", "rank-../00.safetensors\",\"sha", "expected rank-NNNNN.safetensors"},
      {"\"bytes\":200", "\"bytes\":-1", "bytes is no number of 0 or more"},
      {"\"files\": [", "\"files\": [\n1,", "it has no name where one belongs"},
      {"\"I64\"", "\"F8_E4M3\"", "tensor b has the dtype F8_E4M3"},
      {"\"shape\":[2]", "\"shape\":2", "shape is not a list"},
      {"\"shape\":[2]", "\"shape\":[-2]", "a dimension is no number of 0 or more"},
      {"\"shape\":[2]", "\"shape\":[1,1,1,1,2]", "tensor b has more than 4 axes"},
      {"\"shape\":[2]", "\"shape\":[4294967296,4294967296]", "tensor b is too large to count"},
      {"\"shape\":[2]", "\"shape\":[1152921504606846976]", "tensor b is too large to count"},
      {"[[0,2,", "[[2,2,", "tensor b has the extent [2,2,"},
      {"[[0,2,", "[[2,0,", "tensor b has the extent [2,0,"},
      {"[[0,2,", "[[-1,2,", "an extent's begin is no number of 0 or more"},
      {",112]]", ",112,0]]", "tensor b has an extent that is not [begin, end, file, offset]"},
      {"[[0,2,\"rank-00000.safetensors\",112]]", "[3]",
       "tensor b has an extent that is not [begin, end, file, offset]"},
      {"\"tensors\": {", "\"tensors\": {\n\"x\": [],", "it has no dtype where one belongs"},
      {"\"tensors\": {", "\"tensors\": {\n\"x\": " + deep + closed + ",", "it nests too deep"},
      {"\"tensors\": {", "\"tensors\": {,", "is not valid JSON"},
      {"test build", "test\xff build", "is not valid JSON"},
      {"test build", std::string("test\0build", 10), "is not valid JSON"},
      {"{\n", "{ ", "it does not begin with a { on its own line"},
      {"\"step\": 12", "\"step\": 12,\n\"step\": 13", "it holds step twice"},
      {"\"step\": 12", "\"step\": 12, \"tokens\": 3", "it has a line of 2 fields"},
      {"\"tensors\": {", "\"tensors\": {\n},\n\"tensors\": {},", "it holds tensors twice"},
      {"\"empty\"", "\"b\"", "it holds the tensor b twice"},
      {"\"00000002\"", "\"0000002\"", "tensor b has a crc32c that is not 1 times 8 hexadecimal digits"},
      {"\"00000002\"", "\"0000000x\"", "tensor b has a crc32c that is not 1 times 8 hexadecimal digits"},
      {"\"00000002\"", "\"0000000200000002\"", "tensor b has a crc32c that is not 1 times 8 hexadecimal digits"},
      {"\"00000002\"", "7", "crc32c is not a text"},
      {"[\"00000002\"]", "[]", "tensor b has 1 extents and crc32c of another number"},
      {"\"0000abcd\"", "\"\"", "rank-00000.safetensors has a crc32c that is not 1 times"},
      {"\"step\"", "\"x\": \"" + std::string(size_t{5} << 20, 'x') + "\",\n\"step\"", "it has a line of more than"},
  };
  for (const Case& c : cases) {
    std::string changed = body;
    const size_t at = changed.find(c.from);
    ASSERT_NE(at, std::string::npos) << c.from;
    const std::string message = refusal(with_digest(changed.replace(at, c.from.size(), c.to)));
    expect_contains(message, "PATH: ");
    expect_contains(message, c.message);
  }
}

TEST(Manifest, ReadsNewerMinorVersions) {
  std::string body = without_digest(example().to_text());
  const std::string minor = "\"minor\":3";
  body.replace(body.find(minor), minor.size(), "\"minor\":7");
  body.replace(body.find("\"step\""), 0, "\"new_field\": [1, {\"x\": \"[[[[[[[[ \\\" [[[[[[[\"}],\n");
  EXPECT_EQ(Manifest::parse(with_digest(body), "PATH").info.step, 12);
}

// The JSON library takes 20 times the text.
TEST(Manifest, TakesASmallMultipleOfItsTextInMemory) {
  std::string body = without_digest(example().to_text());
  const std::string end = "},\n";
  ASSERT_TRUE(body.ends_with(end));
  body.resize(body.size() - end.size() - 1);
  for (int tensor = 0; tensor < 30; ++tensor) {
    std::string extents, crcs;
    for (int i = 0; i < 20000; ++i) {
      extents += concat(i ? ",[" : "[", i, ',', i + 1, ",\"rank-00000.safetensors\",", i, ']');
      crcs += i ? ",\"00000000\"" : "\"00000000\"";
    }
    body += concat(",\n\"t", tensor, "\": {\"dtype\":\"U8\",\"shape\":[20000],\"extents\":[", extents, "],\"crc32c\":[",
                   crcs, "]}");
  }
  const std::string text = with_digest(body + "\n" + end);
  ASSERT_GT(text.size(), size_t{25} << 20);
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const long before = peak_kib();
  const Manifest m = Manifest::parse(text, "PATH");
  m.check_coverage("PATH");
  EXPECT_EQ(m.tensors.size(), 34u);
  EXPECT_LT(peak_kib() - before, static_cast<long>(6 * text.size() / 1024));
}

// Format 1.0 had none.
TEST(Manifest, DigestsOfBlocksMayBeMissing) {
  Manifest m = example();
  for (auto& file : m.files) file.header_crc32c.reset();
  for (auto& [name, tensor] : m.tensors)
    for (auto& e : tensor.extents) e.crc32c.clear();
  const std::string text = m.to_text();
  EXPECT_EQ(text.find("crc32c"), std::string::npos);
  EXPECT_EQ(Manifest::parse(text, "PATH").to_text(), text);
}

TEST(Manifest, EveryElementMustBeThereOnce) {
  using Extents = std::vector<std::pair<int64_t, int64_t>>;
  auto message = [](const Extents& extents) {
    Manifest m;
    m.add("t", DType::kU8, {2, 5}, {});
    for (auto [begin, end] : extents) m.add("t", DType::kU8, {2, 5}, {begin, end, "rank-00000.safetensors", 0});
    return message_of<CheckpointError>([&] { m.check_coverage("PATH"); });
  };
  EXPECT_EQ(message({{0, 10}}), "");
  EXPECT_EQ(message({{7, 10}, {0, 3}, {3, 7}}), "");
  EXPECT_EQ(message({}), "PATH: tensor t: its parts end at element 0 of 10");
  EXPECT_EQ(message({{0, 9}}), "PATH: tensor t: its parts end at element 9 of 10");
  EXPECT_EQ(message({{0, 11}}), "PATH: tensor t: its parts end at element 11 of 10");
  EXPECT_EQ(message({{1, 10}}), "PATH: tensor t: elements 0 to 1 are there not at all");
  EXPECT_EQ(message({{0, 4}, {5, 10}}), "PATH: tensor t: elements 4 to 5 are there not at all");
  EXPECT_EQ(message({{0, 4}, {2, 10}}), "PATH: tensor t: elements 2 to 4 are there twice");
  EXPECT_EQ(message({{0, 10}, {0, 10}}), "PATH: tensor t: elements 0 to 10 are there twice");
}

TEST(Manifest, ATensorHasOneDTypeAndOneShape) {
  Manifest m = example();
  EXPECT_EQ(message_of<CheckpointError>([&] { m.add("b", DType::kF64, {2}, {}); }),
            "tensor b is I64 (2) and F64 (2) in the same checkpoint");
  EXPECT_EQ(message_of<CheckpointError>([&] {
              m.add("b", DType::kI64, {1, 2}, {});
            }),
            "tensor b is I64 (2) and I64 (1, 2) in the same checkpoint");
}

TEST(Manifest, TextThatIsNotUtf8IsNotWritten) {
  Manifest m = example();
  m.info.config_yaml = "\xff";
  expect_contains(message_of<CheckpointError>([&] { m.to_text(); }), "not valid UTF-8");
}

TEST(Manifest, PartsAreNamedByTheirBegin) {
  const SafetensorsTensor whole = stored_tensor("t", DType::kF32, {2, 3}, 0, 6);
  EXPECT_EQ(whole.name, "t");
  EXPECT_EQ(whole.shape, (std::vector<int64_t>{2, 3}));
  const SafetensorsTensor part = stored_tensor("t", DType::kF32, {2, 3}, 0, 5);
  EXPECT_EQ(part.name, "t@0");
  EXPECT_EQ(part.shape, (std::vector<int64_t>{5}));
  EXPECT_EQ(stored_tensor("t", DType::kF32, {2, 3}, 4, 6).name, "t@4");
}

}  // namespace
}  // namespace braid
