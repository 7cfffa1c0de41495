#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/huggingface/huggingface_reader.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

constexpr const char* kOneFile = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kFirst = ModelFolder::kShards[0];
constexpr const char* kSecond = ModelFolder::kShards[1];
constexpr const char* kRun = "no string or number begins in the 1048576 bytes behind byte";
constexpr int64_t kBombBytes = int64_t{20} << 20;  // a second copy shows

#ifdef __SANITIZE_ADDRESS__
constexpr bool kMeasuresMemory = false;  // memory that was freed is kept for a while
#else
constexpr bool kMeasuresMemory = true;
#endif

// The most memory this process has used since the last call of reset_peak.
void reset_peak() { std::ofstream("/proc/self/clear_refs") << 5; }
int64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == "VmHWM:") {
      int64_t kib = 0;
      status >> kib;
      return kib << 10;
    }
  ADD_FAILURE() << "no VmHWM";
  return 0;
}

std::string prefix(uint64_t length) { return {reinterpret_cast<const char*>(&length), sizeof length}; }
std::string with_prefix(const std::string& header, const std::string& data = "") {
  return prefix(header.size()) + header + data;
}
std::string repeated(const std::string& part, int64_t bytes = kBombBytes) {
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes) text += part;
  return text;
}
// {"a0":VALUE,"a1":VALUE,...
std::string many_keys(const std::string& value, int64_t bytes = kBombBytes) {
  std::string text = "{";
  for (int64_t i = 0; static_cast<int64_t>(text.size()) < bytes; ++i) text += concat("\"a", i, "\":", value, ",");
  return text;
}

// Text with the first occurrence of a part replaced.
std::string replaced(std::string text, const std::string& part, const std::string& by) {
  const size_t at = text.find(part);
  EXPECT_NE(at, std::string::npos) << part;
  return text.replace(at, part.size(), by);
}

// A good folder, to be broken in one place.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {}
  std::string path(const std::string& name) const { return path_ + "/" + name; }
  ModelFolder model = make_model_folder(tiny_model());

  void write(const std::string& name, const std::string& bytes) { write_bytes(path(name), bytes); }
  // In the text of a file, or in a safetensors header.
  void edit(const std::string& name, const std::string& part, const std::string& by) {
    write(name, replaced(bytes_of(path(name)), part, by));
  }
  void edit_header(const std::string& part, const std::string& by, const char* name = kOneFile) {
    const std::string bytes = bytes_of(path(name));
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    write(name, with_prefix(replaced(bytes.substr(8, length), part, by), bytes.substr(8 + length)));
  }
  void resize(const std::string& name, int64_t by) { fs::resize_file(path(name), fs::file_size(path(name)) + by); }
  void link(const std::string& target, const std::string& name) {
    fs::remove(path(name));
    fs::create_symlink(target, path(name));
  }

 private:
  std::string path_;
};

struct Case {
  const char* name;
  std::function<void(Folder&)> damage;
  const char* file;  // that the message starts with; "" for the folder
  const char* rule;  // what it says
};

class BrokenFilesTest : public FolderTest {
 protected:
  // Opens the folder and reads all of it, as every use of it does.
  std::string refusal() {
    return message_of<CheckpointError>([&] {
      const HuggingFaceReader reader(path("m"));
      for (const Parameter& p : reader.parameters()) {
        std::vector<float> out(p.shape.numel());
        reader.read_weights(p, 0, p.shape.numel(), Tensor::of(out.data(), {p.shape.numel()}));
      }
    });
  }
  int64_t bytes_of_folder() {
    int64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(path("m")))
      if (fs::is_regular_file(entry.symlink_status()))
        bytes += static_cast<int64_t>(std::min<uintmax_t>(entry.file_size(), 1u << 30));
    return bytes;
  }
  void expect_refused(const Case& c) {
    const std::string file = path("m") + (*c.file == '\0' ? "" : "/") + c.file + ": ";
    reset_peak();
    const int64_t before = peak_bytes();
    const std::string message = refusal();
    const int64_t growth = peak_bytes() - before;
    EXPECT_TRUE(message.starts_with(file)) << c.name << " names " << file << " in: " << message;
    EXPECT_NE(message.find(c.rule), std::string::npos) << c.name << ": no \"" << c.rule << "\" in: " << message;
    EXPECT_LE(message.size(), 5000u) << c.name;
    if (kMeasuresMemory) {
      EXPECT_LE(growth, bytes_of_folder() + (int64_t{16} << 20)) << c.name << " takes too much memory";
    }
  }
};

TEST_F(BrokenFilesTest, OneFile) {
  const std::string embed = R"("model.embed_tokens.weight":{"dtype":"BF16","shape":[24,8],"data_offsets":[0,384]})";
  const auto header = [](const std::string& part, const std::string& by) {
    return [=](Folder& f) { f.edit_header(part, by); };
  };
  const auto file = [](const std::string& bytes) { return [=](Folder& f) { f.write(kOneFile, bytes); }; };
  const auto tensors = [](const std::function<void(ModelFolder&)>& change) {
    return [=](Folder& f) {
      change(f.model);
      f.write(kOneFile, f.model.file());
    };
  };
  const std::string offsets = "[0,384]";
  const Case cases[] = {
      // the length of the header
      {"empty file", file(""), kOneFile, "is 0 bytes long, too short"},
      {"half a length", file("1234"), kOneFile, "is 4 bytes long, too short"},
      {"length only", file(prefix(2)), kOneFile, "declares a safetensors header of 2 bytes in a file of 8"},
      {"length 0", file(prefix(0) + "{}"), kOneFile, "declares a safetensors header of 0 bytes"},
      {"length 1", file(prefix(1) + "{}"), kOneFile, "declares a safetensors header of 1 bytes"},
      {"length beyond the file", file(prefix(3) + "{}"), kOneFile, "header of 3 bytes in a file of 10"},
      {"length 2^31", file(prefix(1u << 31) + "{}"), kOneFile, "header of 2147483648 bytes"},
      {"length 2^63", file(prefix(1ull << 63) + "{}"), kOneFile, "header of 9223372036854775808 bytes"},
      {"length 2^64 - 1", file(prefix(~0ull) + "{}"), kOneFile, "header of 18446744073709551615 bytes"},
      {"length over 100 MB",
       [](Folder& f) {
         f.write(kOneFile, prefix(100'000'001));
         f.resize(kOneFile, 150'000'000);
       },
       kOneFile, "at most 100000000"},
      // the text of the header
      {"no JSON", file(with_prefix("{]")), kOneFile, "not valid JSON in UTF-8 at byte 10"},
      {"no object", file(with_prefix("[]")), kOneFile, "does not start with {"},
      {"space in front", file(with_prefix(" {}")), kOneFile, "does not start with {"},
      {"bad UTF-8", header("lm_head", "lm_head\xff"), kOneFile, "not valid JSON in UTF-8"},
      {"bytes behind the object", file(with_prefix("{} {}")), kOneFile, "not valid JSON"},
      {"zero byte", file(with_prefix(std::string("{}\0", 3))), kOneFile, "holds a zero byte"},
      {"a name twice", header(embed, embed + "," + embed), kOneFile, "\"model.embed_tokens.weight\" twice"},
      {"a name twice, escaped",
       [&](Folder& f) { f.edit_header(embed, embed + "," + replaced(embed, "model", "\\u006dodel")); }, kOneFile,
       "\"model.embed_tokens.weight\" twice"},
      {"metadata twice", header("{\"__meta", R"({"__metadata__":{},"__meta)"), kOneFile, "\"__metadata__\" twice"},
      {"metadata with a number", header("\"pt\"", "1"), kOneFile, "__metadata__ \"format\" is not a string"},
      {"metadata is a list", header("{\"format\":\"pt\"}", "[]"), kOneFile, "__metadata__ is not an object"},
      {"entry is a list", header("{\"dtype\"", "[],\"b\":{\"dtype\""), kOneFile, "is not an object"},
      {"entry without dtype", header("\"dtype\":\"BF16\",", ""), kOneFile, "must have exactly dtype, shape"},
      {"entry with another field", header("\"dtype\":", "\"x\":1,\"dtype\":"), kOneFile, "found \"x\""},
      {"field twice", header("\"shape\":[24,8]", "\"shape\":[24,8],\"shape\":[24,8]"), kOneFile, "holds shape twice"},
      {"unknown dtype", header("BF16", "BF17"), kOneFile, "dtype \"BF17\" is not supported"},
      {"8-bit floats", header("BF16", "F8_E4M3"), kOneFile, "dtype \"F8_E4M3\" is not supported"},
      {"dtype is a number", header("\"BF16\"", "16"), kOneFile, "dtype is not a string"},
      // shapes and offsets
      {"negative shape", header("[24,8]", "[-24,8]"), kOneFile, "shape holds something else"},
      {"fractional shape", header("[24,8]", "[24.0,8]"), kOneFile, "shape holds something else"},
      {"nine axes", header("[24,8]", "[24,8,1,1,1,1,1,1,1]"), kOneFile, "shape has more than 8 numbers"},
      {"shape overflow", header("[24,8]", "[4294967296,4294967296]"), kOneFile, "too large to count"},
      {"shape and offsets differ", header("[24,8]", "[24,9]"), kOneFile, "need 432 bytes, data_offsets span 384"},
      {"negative offset", header("[0,384]", "[-1,383]"), kOneFile, "data_offsets holds something else"},
      {"fractional offset", header("[0,384]", "[0,384.5]"), kOneFile, "data_offsets holds something else"},
      {"one offset", header("[0,384]", "[384]"), kOneFile, "data_offsets is not a pair"},
      {"offsets reversed", header("[0,384]", "[384,0]"), kOneFile, "lie outside"},
      {"offset beyond 2^63", header("[0,384]", "[0,18446744073709551615]"), kOneFile, "is too large"},
      {"offset beyond the data", header("[0,384]", "[9000000,9000384]"), kOneFile, "lie outside"},
      {"overlap", header("[384,400]", "[368,384]"), kOneFile, "an overlap"},
      {"hole",
       [](Folder& f) {
         f.edit_header("\"shape\":[24,8],\"data_offsets\":[0,384]", "\"shape\":[23,8],\"data_offsets\":[0,368]");
       },
       kOneFile, "a hole"},
      {"cut short", [](Folder& f) { f.resize(kOneFile, -1); }, kOneFile, "lie outside"},
      {"trailing byte", [](Folder& f) { f.resize(kOneFile, 1); }, kOneFile, "the tensors end at byte"},
      // what would fill the memory
      {"deep nesting", file(with_prefix("{\"a\":" + repeated("["))), kOneFile, kRun},
      {"deep nesting in a shape", file(with_prefix("{\"a\":{\"shape\":" + repeated("["))), kOneFile, kRun},
      {"deep nesting with names", file(with_prefix(repeated("{\"a\":"))), kOneFile, "must have exactly"},
      {"long shape", file(with_prefix("{\"a\":{\"shape\":[" + repeated("0,"))), kOneFile, "more than 8 numbers"},
      {"many names", file(with_prefix(many_keys("{}"))), kOneFile, "must have exactly"},
      {"much metadata", file(with_prefix("{\"__metadata__\":" + many_keys("\"\""))), kOneFile,
       "more than 65536 entries"},
      {"a long name", file(with_prefix("{\"" + repeated("a") + "\":0}")), kOneFile, kRun},
      {"a long value", file(with_prefix("{\"__metadata__\":{\"a\":\"" + repeated("a") + "\"}}")), kOneFile, kRun},
      {"a long number", file(with_prefix("{\"a\":{\"shape\":[" + repeated("1") + "]}}")), kOneFile, kRun},
      // the tensors
      {"missing tensor", tensors([](ModelFolder& m) { m.tensors.pop_back(); }), "",
       "1 missing: \"lm_head.weight\" (24, 8)"},
      {"unexpected tensor", tensors([](ModelFolder& m) {
         m.tensors.push_back({"x\n", DType::kU8, {0}, ""});
       }),
       "", "1 unexpected: \"x\\n\" (0)"},
      {"transposed tensor", tensors([](ModelFolder& m) {
         m.tensor("lm_head.weight").shape = {8, 24};
       }),
       "", "1 of another shape: \"lm_head.weight\" is (8, 24), expected (24, 8)"},
      {"flattened tensor", tensors([](ModelFolder& m) { m.tensor("lm_head.weight").shape = {192}; }), "",
       "\"lm_head.weight\" is (192), expected (24, 8)"},
      {"convolution without its middle axis", tensors([](ModelFolder& m) {
         m.tensor("model.layers.0.linear_attn.conv1d.weight").shape = {16, 4};
       }),
       "", "conv1d.weight\" is (16, 4), expected (16, 1, 4)"},
      {"integers",
       header("\"BF16\",\"shape\":[24,8],\"data_offsets\":[0,384]",
              "\"I32\",\"shape\":[12,8],\"data_offsets\":[0,384]"),
       kOneFile, "dtype is I32, expected BF16, F16 or F32"},
      {"part of an MTP block", tensors([](ModelFolder& m) {
         m.tensors.push_back({"mtp.x", DType::kU8, {0}, ""});
       }),
       "", "missing: \"mtp.fc.weight\" (8, 16), "},
      {"NaN", tensors([](ModelFolder& m) { m.tensor("lm_head.weight").bytes.replace(34, 2, "\xff\x7f"); }), kOneFile,
       "tensor lm_head.weight: element (2, 1) is not finite"},
      {"infinity in a norm",
       tensors([](ModelFolder& m) { m.tensor("model.norm.weight").bytes.replace(6, 2, "\x80\xff"); }), kOneFile,
       "tensor model.norm.weight: element (3) is not finite"},
      // config.json
      {"no config.json", [](Folder& f) { fs::remove(f.path("config.json")); }, "config.json", "is missing"},
      {"broken config.json", [](Folder& f) { f.write("config.json", "{"); }, "config.json", "not valid JSON"},
      {"another model", [](Folder& f) { f.edit("config.json", "qwen3_next", "llama"); }, "config.json",
       "model_type is"},
      {"far too many layers",
       [](Folder& f) { f.edit("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2000000000"); },
       "config.json", "num_hidden_layers is 2000000000, but must be at most 10000"},
      {"more layers than there are",
       [](Folder& f) { f.edit("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 10000"); }, "",
       "config.json says num_hidden_layers 10000, but the folder holds"},
      {"far too many experts",
       [](Folder& f) { f.edit("config.json", "\"num_experts\": 4", "\"num_experts\": 2000000000"); }, "",
       "config.json says num_experts 2000000000, but the folder holds"},
      {"too many values in config.json", [](Folder& f) { f.write("config.json", many_keys("[0,0,0]", 1'000'000)); },
       "config.json", "not valid JSON"},
      {"config.json nests", [](Folder& f) { f.write("config.json", repeated("[", 1'000'000)); }, "config.json",
       "nests deeper than 32"},
      // the file itself
      {"no weights", [](Folder& f) { fs::remove(f.path(kOneFile)); }, "", "holds neither model.safetensors nor"},
      {"a folder", [](Folder& f) { f.link("..", kOneFile); }, kOneFile, "is a link that leaves the folder"},
      {"a link to a device", [](Folder& f) { f.link("/dev/zero", kOneFile); }, kOneFile, "is a link that leaves"},
      {"a link to nothing", [](Folder& f) { f.link("absent", kOneFile); }, kOneFile, "is missing"},
      {"a link to itself", [](Folder& f) { f.link(kOneFile, kOneFile); }, kOneFile, "is a link"},
  };
  EXPECT_GE(std::size(cases), 60u);
  for (const Case& c : cases) {
    fs::remove_all(path("m"));
    Folder folder(path("m"));
    folder.model.write(path("m"));
    ASSERT_EQ(refusal(), "");
    c.damage(folder);
    expect_refused(c);
  }
}

TEST_F(BrokenFilesTest, Index) {
  const auto index = [](const std::string& part, const std::string& by) {
    return [=](Folder& f) { f.edit(kIndex, part, by); };
  };
  const auto text = [](const std::string& text) { return [=](Folder& f) { f.write(kIndex, text); }; };
  const std::string line = concat("\"model.embed_tokens.weight\": \"", kFirst, "\"");
  const auto line_to = [&](const std::string& name) { return index(line, "\"model.embed_tokens.weight\": " + name); };
  const std::string total = "{\"total_size\": ";
  const Case cases[] = {
      // the text
      {"empty", text(""), kIndex, "not valid JSON in UTF-8 at byte"},
      {"cut short", [](Folder& f) { f.resize(kIndex, -4); }, kIndex, "not valid JSON"},
      {"bytes behind the object", index("\n}\n", "\n}x"), kIndex, "not valid JSON"},
      {"bad UTF-8", index("model.embed", "model\xff.embed"), kIndex, "not valid JSON"},
      {"zero byte", text(std::string("{}\0", 3)), kIndex, "holds a zero byte"},
      {"a list", text("[]"), kIndex, "is not an object"},
      {"a string", text("\"weight_map\""), kIndex, "is not an object"},
      // its parts
      {"no weight_map", text("{}"), kIndex, "weight_map is missing"},
      {"empty weight_map", text("{\"weight_map\":{}}"), kIndex, "weight_map is empty"},
      {"weight_map is a list", text("{\"weight_map\":[]}"), kIndex, "weight_map is not an object"},
      {"weight_map is null", text("{\"weight_map\":null}"), kIndex, "weight_map is not an object"},
      {"weight_map twice", index("{\n  \"meta", "{\"weight_map\":{},\"meta"), kIndex, "holds weight_map twice"},
      {"metadata twice", index("{\n  \"meta", "{\"metadata\":{},\"meta"), kIndex, "holds metadata twice"},
      {"metadata is a number", text("{\"metadata\":1,\"weight_map\":{}}"), kIndex, "metadata is not an object"},
      {"total_size is text", index(total, total + "\"1\",\"x\":"), kIndex, "total_size is not a number of bytes"},
      {"total_size is negative", index(total, total + "-"), kIndex, "total_size is not a number of bytes"},
      {"total_size is a fraction", index(total, total + "0."), kIndex, "total_size is not a number of bytes"},
      {"total_size is a list", index(total, total + "[],\"x\":"), kIndex, "total_size is not a number of bytes"},
      {"total_size is too large", index(total, total + "18446744073709551615,\"x\":"), kIndex, "which is too large"},
      {"total_size is wrong", index(total, total + "1"), kIndex, "metadata.total_size is 1"},
      {"total_size is 0", index(total, total + "0,\"x\":"), kIndex, "metadata.total_size is 0, but its tensors have"},
      {"total_size twice", index(total, total + "1,\"total_size\":"), kIndex, "holds metadata.total_size twice"},
      // names of files
      {"file is a number", line_to("1"), kIndex, "weight_map \"model.embed_tokens.weight\" is not the name of a file"},
      {"file is an object", line_to("{}"), kIndex, "is not the name of a file"},
      {"file is a list", line_to("[\"x\"]"), kIndex, "is not the name of a file"},
      {"file above the folder", line_to("\"../x.safetensors\""), kIndex,
       "weight_map \"model.embed_tokens.weight\" names \"../x.safetensors\", which is not a file name in this folder"},
      {"absolute path", line_to("\"/etc/passwd\""), kIndex, "which is not a file name in this folder"},
      {"path below the folder", line_to("\"a/b\""), kIndex, "which is not a file name in this folder"},
      {"path with a backslash", line_to("\"..\\\\x\""), kIndex, "which is not a file name in this folder"},
      {"path with a zero byte", line_to("\"x\\u0000y\""), kIndex, "which is not a file name in this folder"},
      {"empty path", line_to("\"\""), kIndex, "which is not a file name in this folder"},
      {"the folder", line_to("\".\""), kIndex, "which is not a file name in this folder"},
      {"the folder above", line_to("\"..\""), kIndex, "which is not a file name in this folder"},
      {"absent file", line_to("\"x.safetensors\""), "x.safetensors", "is missing"},
      {"no safetensors", line_to("\"config.json\""), "config.json", "declares a safetensors header"},
      {"deleted shard", [](Folder& f) { fs::remove(f.path(kSecond)); }, kSecond, "is missing"},
      {"shard is a folder",
       [](Folder& f) {
         fs::remove(f.path(kSecond));
         fs::create_directory(f.path(kSecond));
       },
       kSecond, "expected a file, found a folder"},
      {"shard links out",
       [](Folder& f) {
         fs::rename(f.path(kSecond), f.path("../outside"));
         f.link("../outside", kSecond);
       },
       kSecond, "is a link that leaves the folder, to "},
      {"index links out",
       [](Folder& f) {
         fs::rename(f.path(kIndex), f.path("../outside"));
         f.link("../outside", kIndex);
       },
       kIndex, "is a link that leaves the folder, to "},
      {"broken shard", [](Folder& f) { f.resize(kSecond, 1); }, kSecond, "the tensors end at byte"},
      // names of tensors
      {"name of no tensor", index("model.embed_tokens", "other"), kIndex,
       "1 listed but not in the file: \"other.weight\" in model-00001-of-00002.safetensors"},
      {"tensor of a file that comes later", line_to(concat("\"", kSecond, "\"")), kIndex,
       "1 listed but not in the file: \"model.embed_tokens.weight\" in model-00002-of-00002.safetensors"},
      {"tensor of a file that came before",
       index(concat("\"lm_head.weight\": \"", kSecond), concat("\"lm_head.weight\": \"", kFirst)), kIndex,
       "1 listed but not in the file: \"lm_head.weight\" in model-00001-of-00002.safetensors"},
      {"unlisted tensor", index("    " + line + ",\n", ""), kIndex, "1 in a file but not listed: \"model.embed_"},
      {"name twice", index(line, line + "," + line), kIndex, "holds the name \"model.embed_tokens.weight\" twice"},
      {"tensor in two files",
       [](Folder& f) {
         f.model.tensors.push_back(f.model.tensors[0]);
         f.write(kSecond, f.model.file(f.model.half(), f.model.tensors.size()));
       },
       kSecond, "tensor \"model.embed_tokens.weight\" is also in "},
      {"tensors of no model",
       [](Folder& f) {
         f.model.tensors[0].name = "x";
         f.model.write_sharded(f.path("."));
       },
       "", "1 missing: \"model.embed_tokens.weight\" (24, 8); 1 unexpected: \"x\" (24, 8)"},
      // what would fill the memory
      {"many names of no tensor", text("{\"weight_map\":" + many_keys(concat("\"", kFirst, "\""))), kIndex,
       "not valid JSON"},
      {"many files", text("{\"weight_map\":" + replaced(many_keys("\"x\""), "\"x\"", concat("\"", kFirst, "\""))), "x",
       "is missing"},
      {"many keys", text(many_keys("0")), kIndex, "not valid JSON"},
      {"deep nesting", text("{\"a\":" + repeated("[")), kIndex, kRun},
      {"deep nesting with names", text(repeated("{\"a\":")), kIndex, "not valid JSON"},
      {"a long name", text("{\"weight_map\":{\"" + repeated("a") + "\":0}}"), kIndex, kRun},
      {"a long file name", text("{\"weight_map\":{\"a\":\"" + repeated("a") + "\"}}"), kIndex, kRun},
      {"over 100 MB", [](Folder& f) { f.resize(kIndex, 100'000'000); }, kIndex, "at most 100000000 are read"},
  };
  for (const Case& c : cases) {
    fs::remove_all(path("m"));
    Folder folder(path("m"));
    folder.model.write_sharded(path("m"));
    ASSERT_EQ(refusal(), "");
    c.damage(folder);
    expect_refused(c);
  }
}

}  // namespace
}  // namespace braid
