#include "trainer/config/config_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <sstream>

#include "tests/file_testing.h"
#include "tests/testing.h"
#include "trainer/config/config_visit.h"
#include "trainer/config/foreign_keys.h"
#include "trainer/config/study_config.h"

namespace braid {
namespace {

using namespace braid::testing;
namespace fs = std::filesystem;

const fs::path kRepository = testing::moved("BRAID_SOURCE", BRAID_SOURCE_FOLDER);

// A folder of config files, removed at the end of the test.
class ConfigReader : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) const {
    const fs::path path = folder_ / name;
    write_bytes(path, text);
    return path.string();
  }
  RunConfig read(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    return read_config(write("c.yaml", text), overrides);
  }
  // The message without the folder: "c.yaml:3: run.steps: ..."
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) const {
    return without_folder(message_of<ConfigError>([&] { read(text, overrides); }));
  }
  std::string override_error(const std::string& text) const { return error("{}", {text}); }
  std::string without_folder(std::string message) const {
    const std::string prefix = folder_.string() + "/";
    for (size_t at; (at = message.find(prefix)) != std::string::npos;) message.erase(at, prefix.size());
    return message;
  }

  TemporaryFolder temporary_;
  fs::path folder_ = fs::canonical(temporary_.path());
};

std::vector<std::string> parts_of(const std::string& dotted) {
  std::vector<std::string> parts;
  std::istringstream in(dotted);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}
std::string last_part(const std::string& dotted) { return parts_of(dotted).back(); }

// YAML that states one key, in its last line.
struct Statement {
  std::string text, path;  // path as messages write it
  int line = 0;
};
Statement statement(const std::string& dotted, const std::string& value) {
  Statement s;
  std::string indent;
  for (std::string part : parts_of(dotted)) {
    const bool in_list = part.ends_with("[]");
    if (in_list) part.resize(part.size() - 2);
    s.text += (s.text.empty() ? "" : "\n") + indent + part + ":";
    s.path = join_keys(s.path, part);
    indent += "  ";
    ++s.line;
    if (!in_list) continue;
    s.text += "\n" + indent + "-";
    s.path += "[0]";
    indent += "  ";
    ++s.line;
  }
  s.text += " " + value;
  return s;
}

// The same as an override: data.sources[].name=x -> data.sources=[{name: x}]
std::string override_text(const std::string& dotted, const std::string& value) {
  std::string text, rest = dotted, closing;
  for (size_t list; (list = rest.find("[].")) != std::string::npos; rest = rest.substr(list + 3)) {
    text += rest.substr(0, list) + (text.empty() ? "=[{" : ": [{");
    closing += "}]";
  }
  return text + rest + (text.empty() ? "=" : ": ") + value + closing;
}

// ---- Values

TEST_F(ConfigReader, ReadsEveryType) {
  const RunConfig c = read(
      "run: {dir: 'runs/x y', steps: 12}\n"
      "device: cpu\n"
      "optimizer:\n"
      "  lr: 3e-4\n"
      "  eps: 0.5\n"
      "  weight_decay: -2\n"
      "  norm_weight_decay: qk_only\n"
      "model:\n"
      "  norm_topk_prob: false\n"
      "  layer_types: [linear_attention, full_attention]\n"
      "data:\n"
      "  sources:\n"
      "    - name: a\n"
      "      shards: [/x.h5]\n"
      "    - {name: b, text: [/y, /z], weight: 2.5}\n");
  EXPECT_EQ(c.run.dir, "runs/x y");
  EXPECT_EQ(c.run.steps, 12);
  EXPECT_EQ(c.device, DeviceChoice::kCpu);
  EXPECT_EQ(c.optimizer.lr, 3e-4);
  EXPECT_EQ(c.optimizer.eps, 0.5);
  EXPECT_EQ(c.optimizer.weight_decay, -2.0);
  EXPECT_EQ(c.optimizer.norm_weight_decay, NormWeightDecay::kQkOnly);
  EXPECT_FALSE(c.model.norm_topk_prob);
  EXPECT_EQ(c.model.layer_types, (std::vector{LayerType::kLinearAttention, LayerType::kFullAttention}));
  ASSERT_EQ(c.data.sources.size(), 2u);
  EXPECT_EQ(c.data.sources[0].shards, std::vector<std::string>{"/x.h5"});
  EXPECT_EQ(c.data.sources[1].text, (std::vector<std::string>{"/y", "/z"}));
  EXPECT_EQ(c.data.sources[1].weight, 2.5);
  EXPECT_EQ(c.optimizer.beta2, 0.95);  // not stated: the default
}

TEST_F(ConfigReader, ReadsNumbersInPlainAndExponentForm) {
  const std::pair<const char*, double> numbers[] = {{"0", 0},         {"-0.0", 0},        {"1", 1},
                                                    {"10.25", 10.25}, {"1e-8", 1e-8},     {"1E8", 1e8},
                                                    {"1.5e+3", 1500}, {"5e-324", 5e-324}, {"-3.5", -3.5}};
  for (const auto& [text, value] : numbers) EXPECT_EQ(read(concat("optimizer: {lr: ", text, "}")).optimizer.lr, value);
  EXPECT_EQ(read("train: {seed: -9223372036854775808}").train.seed, std::numeric_limits<int64_t>::min());
  EXPECT_EQ(read("train: {seed: 9223372036854775807}").train.seed, std::numeric_limits<int64_t>::max());
}

TEST_F(ConfigReader, ReadsByteOrderMarkAndCarriageReturns) {
  EXPECT_EQ(read("\xef\xbb\xbfrun:\r\n  dir: a\r\n  steps: 7\r\n").run.steps, 7);
  EXPECT_EQ(read("\xef\xbb\xbfrun:\r\n  dir: a\r\n").run.dir, "a");
  EXPECT_EQ(error("\xef\xbb\xbfrun:\r\n  dir: a\r\n  stops: 7\r\n"),
            "c.yaml:3: run.stops: unknown key, did you mean steps?");
}

template <class T>
std::vector<const char*> bad_values() {
  if constexpr (std::is_same_v<T, bool>) return {"yes", "on", "True", "1", "'true'", "~", "[true]"};
  else if constexpr (std::is_same_v<T, int64_t>)
    return {"1e3",
            "1_000",
            "0x10",
            "010",
            "'5'",
            "1.0",
            "abc",
            "true",
            "[1]",
            "{a: 1}",
            "~",
            "+5",
            ".inf",
            "5 5",
            "--5",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999"};
  else if constexpr (std::is_same_v<T, double>)
    return {"nan", ".nan", ".inf", "-.inf", "inf", "abc", "'1'", "1e999", "1e-999", "0x1p3", "1_0.0",
            "007", "1.",   ".5",   "1e",    "1e+", "[1]", "~",   "+1",    "true",   "1,5"};
  else if constexpr (std::is_same_v<T, std::string>) return {"~", "null", "[a]", "{a: 1}", "[]"};
  else if constexpr (std::is_enum_v<T>) return {"nope", "1", "~", "[]", "{}", "''", "true"};
  else if constexpr (kIsList<T>) return {"a", "1", "~", "{a: 1}", "'[a]'"};
  else return {"5", "a", "[a]", "~", "''", "true"};  // a section
}

template <class T>
std::string expectation() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  else if constexpr (std::is_same_v<T, int64_t>) return "a";  // an integer ..., a number within ...
  else if constexpr (std::is_same_v<T, double>) return "a number";
  else if constexpr (std::is_same_v<T, std::string>) return "text";
  else if constexpr (std::is_enum_v<T>) return "one of " + enum_words<T>(", ");
  else if constexpr (kIsList<T>) return "a list";
  else return "a mapping";
}

// A key of the schema, "data.sources[].name", and what its type means for the tests:
// the schema is walked once, for all of them.
struct SchemaKey {
  std::string dotted, expectation;
  std::vector<const char*> bad_values;
  bool is_section;  // or a list of sections
};
template <ConfigSection Section>
void add_schema_keys(std::vector<SchemaKey>& keys, Section section, const std::string& path) {
  visit_keys(section, path, [&](const std::string& dotted, auto& value, const char*) {
    using Value = std::remove_reference_t<decltype(value)>;
    keys.push_back(
        {dotted, expectation<Value>(), bad_values<Value>(), ConfigSection<Value> || ConfigSectionList<Value>});
    if constexpr (ConfigSectionList<Value>) add_schema_keys(keys, typename Value::value_type(), dotted + "[]");
  });
}
std::vector<SchemaKey> schema() {
  std::vector<SchemaKey> keys;
  add_schema_keys(keys, RunConfig(), "");
  return keys;
}
bool is_name_of_a_key(const std::vector<SchemaKey>& keys, const std::string& name) {
  return std::any_of(keys.begin(), keys.end(), [&](const SchemaKey& key) { return last_part(key.dotted) == name; });
}

TEST_F(ConfigReader, RefusesBadValuesOfEveryKeyInFilesAndOnTheCommandLine) {
  int num_keys = 0;
  for (const auto& [dotted, expectation, bad_values, is_section] : schema()) {
    ++num_keys;
    EXPECT_GE(bad_values.size(), 5u);
    for (const char* bad : bad_values) {
      const Statement s = statement(dotted, bad);
      const std::string complaint = concat(s.path, ": expected ", expectation);
      const std::string in_file = error(s.text);
      EXPECT_TRUE(in_file.starts_with(concat("c.yaml:", s.line, ": ", complaint))) << s.text << "\n" << in_file;
      if (std::string(bad).find(',') != std::string::npos && dotted.find("[]") != std::string::npos) continue;
      const std::string on_command_line = override_error(override_text(dotted, bad));
      EXPECT_TRUE(on_command_line.starts_with("command line: " + complaint)) << s.text << "\n" << on_command_line;
    }
  }
  EXPECT_GT(num_keys, 70);
}

TEST_F(ConfigReader, SaysWhatItExpectedAndWhatItGot) {
  EXPECT_EQ(error("run:\n  steps: 1e3\n"),
            "c.yaml:2: run.steps: expected an integer, written in plain decimal digits, got 1e3");
  EXPECT_EQ(error("run:\n  steps:\nlog: {}\n"),
            "c.yaml:2: run.steps: expected an integer, written in plain decimal digits, got nothing");
  EXPECT_EQ(error("precision: fp16\n"), "c.yaml:1: precision: expected one of fp64, fp32, bf16, got fp16");
  EXPECT_EQ(error("optimizer: {lr: '3e-4'}\n"),
            "c.yaml:1: optimizer.lr: expected a number like 3, 0.1 or 3e-4, got the text \"3e-4\"");
  EXPECT_EQ(error("model:\n  layer_types:\n    - full_attention\n    - mamba\n"),
            "c.yaml:4: model.layer_types[1]: expected one of linear_attention, full_attention, got mamba");
  EXPECT_EQ(error("data:\n  sources:\n    - name: a\n      text: [[]]\n"),
            "c.yaml:4: data.sources[0].text[0]: expected text, got a list");
  EXPECT_EQ(error("run: {dir: \"a\\0b\"}"), "c.yaml:1: run.dir: text may not hold a zero byte");
}

// ---- Unknown keys

TEST_F(ConfigReader, NamesTheKeyThatWasMeant) {
  EXPECT_EQ(error("run: {dir: a}\nmodel:\n  num_expert: 4\n"),
            "c.yaml:3: model.num_expert: unknown key, did you mean num_experts?");
  EXPECT_EQ(error("optimizer: {beta3: 0.9}"), "c.yaml:1: optimizer.beta3: unknown key, did you mean beta1 or beta2?");
  EXPECT_EQ(error("model: {linear_num_value_head: 2}"),  // linear_num_key_heads is near as well
            "c.yaml:1: model.linear_num_value_head: unknown key, did you mean linear_num_value_heads?");
  EXPECT_EQ(error("bsae: x.yaml"), "c.yaml:1: bsae: unknown key, did you mean base?");
  EXPECT_EQ(override_error("optimiser.lr=1"), "command line: optimiser: unknown key, did you mean optimizer?");
  EXPECT_EQ(override_error("model.num_expert=1"),
            "command line: model.num_expert: unknown key, did you mean num_experts?");
  EXPECT_EQ(override_error("data.sources=[{nam: x}]"),
            "command line: data.sources[0].nam: unknown key, did you mean name?");
  EXPECT_EQ(error("mtp: {x: 1}"), "c.yaml:1: mtp.x: unknown key; known here: depth, loss_weight");
}

TEST_F(ConfigReader, PointsToTheSectionWhereAKeyLives) {
  EXPECT_EQ(error("lr: 1"), "c.yaml:1: lr: unknown key here, it exists as optimizer.lr");
  EXPECT_EQ(error("train:\n  weight_decay: 1"),
            "c.yaml:2: train.weight_decay: unknown key here, it exists as optimizer.weight_decay");
  EXPECT_EQ(error("shards: [a]"),
            "c.yaml:1: shards: unknown key here, it exists as data.sources[].shards and data.validation_sets[].shards");
  EXPECT_EQ(error("train: {interval_steps: 5}"),
            "c.yaml:1: train.interval_steps: unknown key here, it exists as eval.interval_steps and "
            "checkpoint.interval_steps and log.interval_steps");
  EXPECT_EQ(error("train: {model: {}}"), "c.yaml:1: train.model: unknown key here, it exists as model");
  EXPECT_EQ(error("warmup_step: 5"), "c.yaml:1: warmup_step: unknown key, did you mean schedule.warmup_steps?");
}

TEST_F(ConfigReader, TranslatesTheNamesOfOtherFrameworks) {
  EXPECT_EQ(error("train:\n  learning_rate: 1"),
            "c.yaml:2: train.learning_rate: unknown key, here it is called optimizer.lr");
  EXPECT_EQ(override_error("model.moe_router_topk=2"),
            "command line: model.moe_router_topk: unknown key, here it is called model.num_experts_per_tok");
  EXPECT_EQ(
      error("warmup_ratio: 0.1"),
      "c.yaml:1: warmup_ratio: unknown key, here it is called schedule.warmup_steps (a number of steps, not a share)");
  EXPECT_EQ(error("model: {rope_scaling: ~}"),
            "c.yaml:1: model.rope_scaling: unknown key, here it is called model.rope_parameters");
}

// Two hundred mistakes of people who come from elsewhere: see the table.
TEST_F(ConfigReader, AnswersTypicalMistakesWithFileLineAndTheRightKey) {
  const std::vector<SchemaKey> keys = schema();
  std::ifstream table(kRepository / "tests/trainer/config/mistakes.txt");
  ASSERT_TRUE(table);
  int mistakes = 0;
  for (std::string row; std::getline(table, row);) {
    if (row.empty() || row[0] == '#') continue;
    std::vector<std::string> cells;
    for (size_t begin = 0, end; begin <= row.size(); begin = end + 3) {
      end = std::min(row.find(" | ", begin), row.size());
      cells.push_back(row.substr(begin, end - begin));
    }
    ASSERT_EQ(cells.size(), 4u) << row;
    std::string yaml = cells[1];
    for (const auto& [from, to] : {std::pair{"\\n", "\n"}, std::pair{"\\t", "\t"}})
      for (size_t at; (at = yaml.find(from)) != std::string::npos;) yaml.replace(at, 2, to);
    const std::string answer = error(yaml + "\n");
    EXPECT_TRUE(answer.starts_with("c.yaml:" + cells[2] + ": ")) << row << "\n" << answer;
    const bool has_key = !cells[3].starts_with("none: ");
    const std::string words = has_key ? cells[3] : cells[3].substr(6);
    EXPECT_TRUE(!has_key || is_name_of_a_key(keys, last_part(words))) << row;
    // Behind the name of what is wrong.
    const size_t said = answer.find("unknown key") == std::string::npos ? 0 : answer.find("unknown key");
    EXPECT_NE(answer.find(words, said), std::string::npos) << row << "\n" << answer;
    ++mistakes;
  }
  EXPECT_GE(mistakes, 200);
}

TEST_F(ConfigReader, KnowsAStudyWhenItSeesOne) {
  EXPECT_EQ(error("question: why?\naxes: []\n"),
            "c.yaml:1: question: unknown key; this is a study, which braid ablate takes");
}

TEST_F(ConfigReader, KnowsEveryKeyThatTheForeignNamesLeadTo) {
  const std::vector<SchemaKey> keys = schema();
  for (const ForeignKey& foreign : kForeignKeys) {
    EXPECT_FALSE(is_name_of_a_key(keys, foreign.name)) << foreign.name << " is a key of ours";
    if (*foreign.key == '\0') EXPECT_STRNE(foreign.note, "") << foreign.name;
    else
      EXPECT_EQ(
          std::count_if(keys.begin(), keys.end(), [&](const SchemaKey& key) { return key.dotted == foreign.key; }), 1)
          << foreign.name << " -> " << foreign.key;
  }
}

TEST_F(ConfigReader, FindsEveryMisspelledKeyOfTheSchema) {
  const std::vector<SchemaKey> keys = schema();
  int num_misspellings = 0;
  for (const SchemaKey& schema_key : keys) {
    const std::string& dotted = schema_key.dotted;
    const std::string key = last_part(dotted), front = dotted.substr(0, dotted.size() - key.size());
    std::string swapped = key, replaced = key;
    std::swap(swapped[key.size() / 2 - 1], swapped[key.size() / 2]);
    replaced[key.size() / 2] = 'q';
    for (const std::string& wrong : {key + "x", key.substr(0, key.size() - 1), key[0] + key, swapped, replaced}) {
      if (is_name_of_a_key(keys, wrong)) continue;
      const Statement s = statement(front + wrong, "1");
      const std::string message = error(s.text);
      const std::string start = concat("c.yaml:", s.line, ": ", s.path, ": unknown key, did you mean ");
      ASSERT_TRUE(message.starts_with(start)) << message << "\nexpected: " << start;
      std::istringstream words(message.substr(start.size(), message.size() - start.size() - 1));
      bool found = false;
      for (std::string word; words >> word;) found |= word == key;
      EXPECT_TRUE(found) << message;
      ++num_misspellings;
    }
  }
  EXPECT_GT(num_misspellings, 350);
}

// ---- What a config may not hold

TEST_F(ConfigReader, RefusesDuplicateKeysWithBothLines) {
  EXPECT_EQ(error("optimizer:\n  lr: 1\n  eps: 1\n  lr: 2\n"),
            "c.yaml:4: optimizer.lr: duplicate key, first stated in line 2");
  EXPECT_EQ(error("run: {dir: a}\nlog: {}\n\nrun: {steps: 1}\n"),
            "c.yaml:4: run: duplicate key, first stated in line 1");
  EXPECT_EQ(error("data:\n  sources:\n    - {name: a}\n    - {name: b,\n       'name': c}\n"),
            "c.yaml:5: data.sources[1].name: duplicate key, first stated in line 4");
  EXPECT_EQ(override_error("optimizer={lr: 1, lr: 2}"), "command line: optimizer.lr: duplicate key");
}

TEST_F(ConfigReader, RefusesAnchorsAliasesTagsMergeKeysAndSecondDocuments) {
  EXPECT_EQ(error("run: {}\noptimizer: &a {lr: 1}\n"), "c.yaml:2: optimizer: anchors (&a) are not allowed");
  EXPECT_EQ(error("&a run: {}\n"), "c.yaml:1: anchors (&a) are not allowed");
  EXPECT_EQ(error("run:\n  dir: *a\n"), "c.yaml:2: aliases (*name) are not allowed");
  for (const char* tag : {"!", "!!str", "!mine", "!<tag:x>"})
    for (const char* value : {"5", "'a'", "{}", "[]", ""})
      EXPECT_EQ(error(concat("run:\n  dir: ", tag, " ", value, "\n")),
                "c.yaml:2: run.dir: tags (!name) are not allowed")
          << tag << " " << value;
  EXPECT_EQ(error("!x run: {}\n"), "c.yaml:1: tags (!name) are not allowed");
  EXPECT_EQ(error("optimizer:\n  <<: {lr: 1}\n"),
            "c.yaml:2: optimizer: merge keys (<<) are not allowed; use base: file.yaml");
  EXPECT_EQ(error("run: {}\n---\nlog: {}\n"), "c.yaml:2: a second document starts here; a config is one document");
  EXPECT_EQ(error("run: {}\n{}\n").substr(0, 8), "c.yaml:2");
  EXPECT_EQ(error("? [a]\n: 5\n"),
            "c.yaml:1: a list or a mapping stands where a key is expected; is a bracket not closed?");
  EXPECT_EQ(error("run: {dir: a, : 5}\n"), "c.yaml:1: run: a key is missing");
  EXPECT_EQ(read("%YAML 1.2\n---\nrun: {steps: 3}\n...\n").run.steps, 3);
}

TEST_F(ConfigReader, RefusesWhatIsNoConfigAtAll) {
  for (const char* empty : {"", "\n\n", "# only a comment\n", "---", "~"})
    EXPECT_EQ(error(empty), "c.yaml:1: expected a mapping of keys, got nothing");
  EXPECT_EQ(error("hello\n"), "c.yaml:1: expected a mapping of keys, got hello");
  EXPECT_EQ(error("[a]"), "c.yaml:1: expected a mapping of keys, got a list");
  EXPECT_EQ(error("run:\n  dir: a\n steps: 1\n"), "c.yaml:3: not valid YAML: end of map not found");
  EXPECT_EQ(error("run:\n\tdir: a\n"), "c.yaml:2: not valid YAML: a tab indents this line; YAML takes spaces only");
  EXPECT_EQ(error(std::string("run:\n  dir: a\4\n", 15)), "c.yaml:2: control character; is this text?");
  EXPECT_EQ(error(std::string("run:\n\0", 6)), "c.yaml:2: control character; is this text?");
  EXPECT_EQ(error("run:\rlog:\n"), "c.yaml:1: control character; is this text?");
  for (const char* bytes :
       {"\xff\xfer\n", "\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82"})
    EXPECT_EQ(error(bytes), "c.yaml:1: bytes that are not UTF-8; is this text?");
  EXPECT_EQ(read("run: {dir: 'd\u00e9\u4e2d\U0001f600'}").run.dir, "d\u00e9\u4e2d\U0001f600");
}

TEST_F(ConfigReader, BoundsSizeAndDepth) {
  EXPECT_EQ(error(std::string((1 << 20) + 1, '#')), "c.yaml:1: more than 1048576 bytes of YAML");
  EXPECT_EQ(error("run: {steps: 3}\n#" + std::string((1 << 20) - 17, 'x')), "");
  EXPECT_EQ(error("run: " + std::string(31, '[') + std::string(31, ']')).substr(0, 24), "c.yaml:1: run: expected ");
  const std::string deep = error("run: " + std::string(32, '[') + std::string(32, ']'));
  EXPECT_TRUE(deep.ends_with(": nested deeper than 32 levels")) << deep;
  EXPECT_EQ(message_of<ConfigError>([] { read_config("/dev/zero", {}); }),
            "/dev/zero:1: more than 1048576 bytes of YAML");
}

TEST_F(ConfigReader, AnswersHostileInputAtOnce) {
  const auto repeated = [](const std::string& unit, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += unit;
    return text;
  };
  std::vector<std::string> inputs = {"[:",
                                     "{:",
                                     "{",
                                     "[",
                                     ":",
                                     "?",
                                     "&",
                                     "*",
                                     "!",
                                     "%",
                                     "|",
                                     ">",
                                     "\"",
                                     "'",
                                     "`",
                                     "@",
                                     "- ",
                                     "{a: b,",
                                     "[\"",
                                     "!2",
                                     "[[[[[[[[[\n- -",
                                     "\"\\x",
                                     "? ? ? ?",
                                     ": : : :",
                                     "{[{[{[",
                                     "-\t-",
                                     "a: [x",
                                     "a: \"x",
                                     "!<",
                                     "&a &a",
                                     "%TAG",
                                     "%YAML 9.9\n---\na: 1",
                                     "a: |\n\tb",
                                     "{a: {b: {"};
  for (const char* unit :
       {"[", "{", "[:", "{:", "- ", "? ", ": ", "a: [", "[a,", "{a: b, ", "[{", "!", "&a ", "- ? ", "'", "\""})
    inputs.push_back(repeated(unit, 100000));
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c <= 'i'; ++c)
    bomb += concat(c, ": &", c, " [", repeated(concat("*", char(c - 1), ", "), 40), "]\n");
  inputs.push_back(bomb);
  std::mt19937_64 random(1);
  for (int i = 0; i < 50; ++i) {
    std::string junk(random() % 3000, '\0');
    for (char& c : junk) c = static_cast<char>(random());
    inputs.push_back(junk);
  }
  for (const std::string& input : inputs) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_NE(error(input), "") << input.substr(0, 40);
    EXPECT_NE(override_error("data.sources=" + input), "") << input.substr(0, 40);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5)) << input.substr(0, 40);
  }
}

TEST_F(ConfigReader, ReadsMutatedConfigsBackOrRefusesThem) {
  RunConfig config;
  config.data.sources = {{{"a", "", {"/a.h5"}, {}}, 1, {}, 0}};
  const std::string original = to_yaml(config);
  std::mt19937_64 random(7);
  const std::string alphabet = "{}[]:,-#&*!|>'\"%@`?\n \t\\0179aeE.~<";
  int num_accepted = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string text = original;
    const size_t at = random() % text.size();
    const char character = alphabet[random() % alphabet.size()];
    switch (random() % 4) {
      case 0: text[at] = character; break;
      case 1: text.erase(at, 1 + random() % 4); break;
      case 2: text.insert(at, 1, character); break;
      case 3: text.insert(std::min(text.find('\n', at), text.size()), 1, character); break;
    }
    RunConfig read_back;
    if (!message_of<ConfigError>([&] { read_back = read(text); }).empty()) continue;
    ++num_accepted;
    EXPECT_TRUE(compare_configs(read_back, read(to_yaml(read_back))).empty()) << text;
  }
  EXPECT_GT(num_accepted, 40);
  EXPECT_LT(num_accepted, 900);
}

// ---- Bases

TEST_F(ConfigReader, MergesBasesKeyByKeyAndReplacesEverythingElse) {
  write("models/m.yaml", "model: {hidden_size: 8, num_experts: 4}\n");
  write("data.yaml",
        "data: {sources: [{name: a, text: [a.txt], weight: 3}, {name: b, text: [b.txt]}], prefetch_steps: 5}\n"
        "model: {num_experts: 16, layer_types: [full_attention, full_attention]}\n");
  const RunConfig c = read_config(write("runs/r.yaml",
                                        "model: {head_dim: 2, layer_types: [linear_attention]}\n"
                                        "base: [../models/m.yaml, ../data.yaml]\n"
                                        "data: {sources: [{name: c, text: [c.txt]}]}\n"),
                                  {});
  EXPECT_EQ(c.model.hidden_size, 8);   // first base
  EXPECT_EQ(c.model.num_experts, 16);  // second base wins over the first
  EXPECT_EQ(c.model.head_dim, 2);
  EXPECT_EQ(c.model.layer_types, std::vector{LayerType::kLinearAttention});
  ASSERT_EQ(c.data.sources.size(), 1u);
  EXPECT_EQ(c.data.sources[0].name, "c");
  EXPECT_EQ(c.data.sources[0].weight, 1.0);  // nothing is left of the list that was replaced
  EXPECT_EQ(c.data.prefetch_steps, 5);
}

TEST_F(ConfigReader, ResolvesInputPathsFromTheFileThatStatesThem) {
  write("shared/data.yaml",
        "init: {from: ../start}\n"
        "data: {sources: [{name: a, shards: [x/a.h5, /abs/b.h5, ../c.h5]}]}\n");
  const std::string path = write("runs/deep/r.yaml", "base: ../../shared/data.yaml\nrun: {dir: relative/dir}\n");
  const std::string root = folder_.string();
  RunConfig c = read_config(path, {});
  EXPECT_EQ(c.data.sources[0].shards, (std::vector<std::string>{root + "/shared/x/a.h5", "/abs/b.h5", root + "/c.h5"}));
  EXPECT_EQ(c.init.from, root + "/start");
  EXPECT_EQ(c.run.dir, "relative/dir");
  EXPECT_EQ(read_config(path, {"init.from=there"}).init.from, (fs::current_path() / "there").string());
  EXPECT_EQ(read_config(path, {"init.from=\"\""}).init.from, "");
  c = read_config(path, {"data.sources=[{name: x, text: [a.txt]}]", "optimizer.lr=1"});
  EXPECT_EQ(c.data.sources[0].text, std::vector<std::string>{(fs::current_path() / "a.txt").string()});

  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  EXPECT_EQ(read_config("shared/data.yaml", {}).data.sources[0].shards[0], root + "/shared/x/a.h5");
  EXPECT_EQ(message_of<ConfigError>([] { read_config("nothing.yaml", {}); }),
            "cannot read nothing.yaml: No such file or directory");
  EXPECT_EQ(message_of<ConfigError>([] { read_config("runs", {}); }), "cannot read runs: Is a directory");
  fs::current_path(before);
}

TEST_F(ConfigReader, NamesTheFileOfABaseAndTheLineThatAskedForIt) {
  write("models/bad.yaml", "model:\n  hidden_siz: 8\n");
  write("models/deep.yaml", "base: bad.yaml\n");
  EXPECT_EQ(error("run: {}\nbase: models/deep.yaml\n"),
            "models/bad.yaml:2: model.hidden_siz: unknown key, did you mean hidden_size?");
  EXPECT_EQ(error("run: {}\nbase:\n  - models/missing.yaml\n"),
            "c.yaml:3: base: cannot read models/missing.yaml: No such file or directory");
  EXPECT_EQ(error("base: 5\n").substr(0, 29), "c.yaml:1: base: cannot read 5");
  EXPECT_EQ(error("base:\nrun: {}\n"), "c.yaml:1: base: expected a file name or a list of file names, got nothing");
  EXPECT_EQ(error("base: {a: b}\n"), "c.yaml:1: base: expected a file name or a list of file names, got a mapping");
  EXPECT_EQ(error("run: {base: x}\n").substr(0, 36), "c.yaml:1: run.base: unknown key; kno");
  EXPECT_EQ(override_error("base=x.yaml").substr(0, 32), "command line: base: unknown key;");
}

TEST_F(ConfigReader, RefusesCirclesAndCrowdsOfBases) {
  EXPECT_EQ(error("base: c.yaml\n"), "c.yaml:1: base: c.yaml is already being read: the bases form a circle");
  write("a.yaml", "\nbase: ./b.yaml\n");
  write("b.yaml", "base: [a.yaml]\n");
  EXPECT_EQ(error("base: a.yaml\n"), "b.yaml:1: base: a.yaml is already being read: the bases form a circle");
  write("l0.yaml", "{}");
  for (int i = 1; i < 20; ++i) write(concat("l", i, ".yaml"), concat("base: [l", i - 1, ".yaml, l", i - 1, ".yaml]\n"));
  EXPECT_EQ(error("base: [l0.yaml, l0.yaml]\n"), "");  // twice is no circle
  const std::string crowd = error("base: l19.yaml\n");
  EXPECT_TRUE(crowd.ends_with("more than 64 files make up this config")) << crowd;
  fs::create_symlink("loop.yaml", folder_ / "loop.yaml");
  EXPECT_NE(error("base: loop.yaml\n"), "");
}

// ---- Overrides

TEST_F(ConfigReader, AppliesOverridesInOrder) {
  const RunConfig c = read("optimizer: {lr: 1, eps: 2}\n",
                           {"optimizer.lr=3e-4", "run.dir=runs/a b", "device=cpu", "optimizer={eps: 5, beta1: 0}",
                            "optimizer.beta1=0.5", "model.layer_types=[full_attention]", "run.steps=3", "run.steps=4",
                            "data.sources=[{name: x, shards: [/a.h5]}]", "init.equal_norm_router_rows=false"});
  EXPECT_EQ(c.optimizer.lr, 3e-4);
  EXPECT_EQ(c.optimizer.eps, 5.0);
  EXPECT_EQ(c.optimizer.beta1, 0.5);
  EXPECT_EQ(c.run.dir, "runs/a b");
  EXPECT_EQ(c.run.steps, 4);
  EXPECT_EQ(c.device, DeviceChoice::kCpu);
  EXPECT_EQ(c.model.layer_types.size(), 1u);
  ASSERT_EQ(c.data.sources.size(), 1u);
  EXPECT_EQ(c.data.sources[0].shards, std::vector<std::string>{"/a.h5"});
  EXPECT_FALSE(c.init.equal_norm_router_rows);
  EXPECT_EQ(read("run: {}", {"run.dir='a # b'"}).run.dir, "a # b");
  EXPECT_EQ(read("run: {}", {"run.dir=a=b"}).run.dir, "a=b");
}

TEST_F(ConfigReader, RefusesWrongOverrides) {
  EXPECT_EQ(override_error("run.steps"), "command line: run.steps: an override is written section.key=value");
  EXPECT_EQ(override_error("=5"), "command line: \"\": an override is written section.key=value");
  EXPECT_EQ(override_error("run..steps=5"), "command line: run..steps: an override is written section.key=value");
  EXPECT_EQ(override_error("run.steps.=5"), "command line: run.steps.: an override is written section.key=value");
  EXPECT_NE(override_error(std::string(100000, '.') + "=5"), "");
  EXPECT_NE(override_error("a" + std::string(100000, '=')), "");
  EXPECT_EQ(override_error("run.steps="),
            "command line: run.steps: expected an integer, written in plain decimal digits, got nothing");
  EXPECT_EQ(override_error("run.steps.x=5"),
            "command line: run.steps: expected an integer, written in plain decimal digits, got a mapping");
  EXPECT_EQ(override_error("run.dir=a #b"),
            "command line: run.dir: the value reads as a; put quotes around text with spaces or #");
  EXPECT_EQ(override_error("run.dir=a: b").substr(0, 48), "command line: run.dir: lists are written [a, b] ");
  EXPECT_EQ(override_error("run.dir=&a b"), "command line: run.dir: anchors (&a) are not allowed");
  EXPECT_EQ(override_error("run.dir=*a"), "command line: run.dir: aliases (*name) are not allowed");
  EXPECT_EQ(override_error("run.dir=!!str b"), "command line: run.dir: tags (!name) are not allowed");
  EXPECT_EQ(override_error("run.dir=a\n---\nb"),
            "command line: run.dir: a second document starts here; a config is one document");
  EXPECT_TRUE(override_error("data.sources=[{name: x").ends_with("is a bracket not closed?"));
  EXPECT_EQ(override_error("run.dir=\"x"), "command line: run.dir: not valid YAML: illegal EOF in scalar");
  EXPECT_EQ(override_error("data.sources=[{name: x}, {name: [y]}]"),
            "command line: data.sources[1].name: expected text, got a list");
  EXPECT_EQ(override_error("data.sources[0].weight=2"),
            "command line: data.sources[0]: unknown key, did you mean sources?");
}

// ---- Writing and comparing

template <class Random>
std::string random_text(Random& random) {
  static const std::string samples[] = {
      "",     "null", "true", "5",  "1e3",    "-",    "- a",          "a: b",          "#",      "a #b",   "a\"b",
      "a\\b", "'",    " a ",  "\n", "a\nb\n", "\t",   "\x01\x04\x7f", "d\u00e9\u4e2d", "[a]",    "{a}",    "!x",
      "&x",   "*x",   "%x",   "@x", "a,b",    "~",    "../x",         "./x",           ".",      "..",     "yes",
      "<<",   "base", "?",    "|",  ".inf",   "0x10", "1_000",        "a\r\nb",        "\u2028", "\u0085", "\ufeff"};
  return samples[random() % std::size(samples)] + (random() % 3 == 0 ? samples[random() % std::size(samples)] : "");
}

template <class Random, ConfigSection Section>
void randomise(Random& random, Section& section) {
  visit_keys(section, "", [&](const std::string&, auto& value, const char*) {
    using Value = std::remove_reference_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, bool>) value = random() % 2 == 0;
    else if constexpr (std::is_same_v<Value, int64_t>) value = static_cast<int64_t>(random()) >> random() % 64;
    else if constexpr (std::is_same_v<Value, double>) {
      do {
        const uint64_t bits = random();
        std::memcpy(&value, &bits, sizeof value);
      } while (!std::isfinite(value));
      if (random() % 2 == 0) value = static_cast<double>(random() % 1000) / 1000;
    } else if constexpr (std::is_enum_v<Value>) value = static_cast<Value>(random() % EnumNames<Value>::kNames.size());
    else if constexpr (std::is_same_v<Value, std::string>) value = random_text(random);
    else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      value.resize(random() % 4);
      for (std::string& text : value) text = "/" + random_text(random);
    } else if constexpr (ConfigSectionList<Value>) {
      value.resize(random() % 4);
      for (auto& element : value) randomise(random, element);
    } else if constexpr (kIsList<Value>) {
      value.assign(random() % 4, static_cast<typename Value::value_type>(random() % 2));
    }
  });
}

// Every value of a config in one string of bytes; doubles bit by bit.
template <ConfigSection Section>
std::string bytes_of(Section& section) {
  std::string bytes;
  visit_keys(section, "", [&](const std::string&, auto& value, const char*) {
    using Value = std::remove_reference_t<decltype(value)>;
    if constexpr (ConfigSectionList<Value>) {
      for (auto& element : value) bytes += "<" + bytes_of(element) + ">";
    } else if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      for (auto& text : value)
        bytes += fs::path(text).lexically_normal().string() + '\0';  // what reading does to paths
    } else if constexpr (kIsList<Value>) {
      for (auto element : value) bytes += std::to_string(static_cast<int>(element));
    } else if constexpr (std::is_same_v<Value, std::string>) {
      bytes += value + '\0';
    } else if constexpr (!ConfigSection<Value>) {
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  });
  return bytes;
}

TEST_F(ConfigReader, ExpandsTheHomeOfPathsAndNothingElse) {
  const char* home = std::getenv("HOME");
  const std::string before = home ? home : "";
  ::setenv("HOME", "/home/me", 1);
  const RunConfig c =
      read("data: {sources: [{name: a, dataset: ~/set, shards: [$HOME/a.h5, \"${HOME}/b.h5\", ./~c]}]}\n");
  EXPECT_EQ(c.data.sources[0].dataset, "/home/me/set");
  EXPECT_EQ(c.data.sources[0].shards[0], "/home/me/a.h5");
  EXPECT_EQ(c.data.sources[0].shards[1], "/home/me/b.h5");
  EXPECT_EQ(fs::path(c.data.sources[0].shards[2]).filename(), "~c");
  for (const char* path : {"$DATA/a.h5", "~you/a.h5", "$HOMES/a.h5"})
    EXPECT_NE(message_of<ConfigError>([&] {
                read(concat("data: {sources: [{name: a, shards: [", path, "]}]}\n"));
              }).find("only ~/ and $HOME/ are expanded"),
              std::string::npos)
        << path;
  if (home) ::setenv("HOME", before.c_str(), 1);
  else ::unsetenv("HOME");
}

TEST_F(ConfigReader, WritesWhatItReadsBackExactly) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    RunConfig config;
    randomise(random, config);
    const auto as_read = [](std::string& path) { path = fs::path("/" + path).lexically_normal().string(); };
    as_read(config.init.from);  // what reading does to paths
    for (SourceConfig& source : config.data.sources) as_read(source.dataset);
    for (TokenFiles& set : config.data.validation_sets) as_read(set.dataset);
    for (ConfigComments comments : {ConfigComments::kNo, ConfigComments::kYes}) {
      const std::string text = to_yaml(config, comments);
      RunConfig read_back;
      ASSERT_NO_THROW(read_back = read(text)) << text;
      EXPECT_EQ(bytes_of(config), bytes_of(read_back)) << text;
    }
  }
}

TEST_F(ConfigReader, ReadsStoredTextStrictlyAndWithoutBases) {
  RunConfig config;
  config.data.sources = {{{"a", "", {"/d/a.h5"}, {}}, 0.1, {}, 0}};
  EXPECT_TRUE(compare_configs(config, read_config_text(to_yaml(config), "step-5")).empty());
  EXPECT_EQ(message_of<ConfigError>([] { read_config_text("run:\n  stepz: 3\n", "step-5"); }),
            "step-5:2: run.stepz: unknown key, did you mean steps?");
  EXPECT_EQ(message_of<ConfigError>([] { read_config_text("base: a.yaml\n", "step-5"); }),
            "step-5: a stored config has no base");
}

TEST_F(ConfigReader, WritesNumbersShortAndTextPlainWherePossible) {
  RunConfig c;
  c.run.dir = "runs/tiny";
  c.optimizer.lr = 3e-4;
  c.data.sources = {{{"a", "", {"/d/a.h5", "../b c.h5"}, {}}, 0.1, {}, 0}};
  const std::string text = to_yaml(c);
  EXPECT_TRUE(text.starts_with("run:\n  dir: runs/tiny\n  steps: 0\n")) << text;
  EXPECT_NE(text.find("\n  lr: 3.0e-4\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n  eps: 1.0e-8\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n  sources:\n    - name: a\n      dataset: \"\"\n      shards: [/d/a.h5, \"../b c.h5\"]\n      "
                      "text: []\n      weight: 0.1\n"),
            std::string::npos)
      << text;
}

TEST_F(ConfigReader, ComparesConfigsKeyByKey) {
  RunConfig before, after;
  EXPECT_TRUE(compare_configs(before, after).empty());
  before.data.sources = {{{"a", "", {"/a"}, {}}, 1, {}, 0}};
  after.data.sources = {{{"a", "", {"/a"}, {}}, 2, {}, 0}, {{"b", "", {}, {"/t"}}, 1, {}, 0}};
  after.optimizer.lr = std::nextafter(before.optimizer.lr, 1);
  after.precision = Precision::kBf16;
  std::vector<std::string> lines;
  for (const ConfigDifference& d : compare_configs(before, after))
    lines.push_back(d.key + " " + d.before + " " + d.after);
  EXPECT_EQ(lines,
            (std::vector<std::string>{"precision fp32 bf16", "optimizer.lr 3.0e-4 0.00030000000000000003",
                                      "data.sources[0].weight 1 2", "data.sources[1].name (absent) b",
                                      "data.sources[1].dataset (absent) \"\"", "data.sources[1].shards (absent) []",
                                      "data.sources[1].text (absent) [/t]", "data.sources[1].weight (absent) 1",
                                      "data.sources[1].token_budget (absent) 0"}));
}

// Another value for the key under `path` that is called `dotted`, in the first elements of lists.
template <ConfigSection Section>
void change_key(Section& section, const std::string& path, const std::string& dotted) {
  visit_keys(section, path, [&](const std::string& other, auto& value, const char*) {
    using Value = std::remove_reference_t<decltype(value)>;
    if constexpr (ConfigSectionList<Value>) {
      change_key(value[0], other + "[]", dotted);
    } else if constexpr (!ConfigSection<Value>) {
      if (other != dotted) return;
      if constexpr (std::is_same_v<Value, bool>) value = !value;
      else if constexpr (std::is_same_v<Value, std::string>) value += "x";
      else if constexpr (kIsList<Value>) value.emplace_back();
      else if constexpr (std::is_enum_v<Value>)
        value = static_cast<Value>((static_cast<int>(value) + 1) % EnumNames<Value>::kNames.size());
      else value += 1;
    }
  });
}

TEST_F(ConfigReader, FindsADifferenceInEveryKey) {
  int num_keys = 0;
  for (const SchemaKey& schema_key : schema()) {
    if (schema_key.is_section) continue;
    RunConfig before;
    before.data.sources = {{{"a", "", {}, {}}, 1, {{2, 1}}, 0}};
    before.data.validation_sets = {{"v", "", {}, {}}};
    before.data.left_out = {{1, 1}};
    RunConfig after = before;
    change_key(after, "", schema_key.dotted);
    const auto differences = compare_configs(before, after);
    ASSERT_EQ(differences.size(), 1u) << schema_key.dotted;
    std::string key = schema_key.dotted;
    for (size_t at; (at = key.find("[]")) != std::string::npos;) key.replace(at, 2, "[0]");
    EXPECT_EQ(differences[0].key, key);
    ++num_keys;
  }
  EXPECT_GT(num_keys, 70);
}

// ---- What ships

TEST(Documentation, ListsEveryKeyAsTheProgramPrintsIt) {
  const std::string page = testing::bytes_of(kRepository / "docs/configuration.md");
  const std::string fence = "```yaml\n# braid config print --docs\n";
  const size_t begin = page.find(fence), end = page.find("```\n", begin + fence.size());
  ASSERT_NE(begin, std::string::npos);
  ASSERT_NE(end, std::string::npos);
  EXPECT_EQ(page.substr(begin + fence.size(), end - begin - fence.size()), to_yaml(RunConfig(), ConfigComments::kYes))
      << "replace the block in docs/configuration.md by the output of braid config print --docs";
}

std::vector<fs::path> shipped(const char* folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(kRepository / "configs" / folder))
    if (entry.path().extension() == ".yaml") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  EXPECT_FALSE(paths.empty()) << folder;
  return paths;
}

TEST(ShippedConfigs, ModelsAreModels) {
  for (const fs::path& path : shipped("models"))
    EXPECT_EQ(message_of<ConfigError>([&] { check_model_config(read_config(path, {})); }), "") << path;
  // The defaults are the released model.
  EXPECT_TRUE(
      compare_configs(RunConfig(), read_config(kRepository / "configs/models/qwen3-next-80b-a3b.yaml", {})).empty());
}

TEST(ShippedConfigs, RunsAreWholeRuns) {
  for (const fs::path& path : shipped("runs")) {
    RunConfig config;
    ASSERT_EQ(message_of<ConfigError>([&] { config = read_config(path, {}); }), "") << path;
    EXPECT_EQ(message_of<ConfigError>([&] { check_config(config); }), "") << path;
    // On as many ranks as it names, on twice and four times as many.
    const int64_t fewest = std::max(config.parallel.expert, config.parallel.context);
    const int64_t most = path.filename() == "laptop.yaml" ? 2 : 4 * fewest;
    for (int64_t ranks = fewest; ranks <= most; ranks *= 2)
      EXPECT_EQ(message_of<ConfigError>([&] { check_config_for_ranks(config, ranks); }), "")
          << path << " on " << ranks << " ranks";
    for (const SourceConfig& source : config.data.sources)
      for (const std::string& text : source.text) EXPECT_TRUE(fs::exists(text)) << path << ": " << text;
  }
}

TEST(ShippedConfigs, EveryVariantOfAStudyIsAWholeRun) {
  for (const fs::path& path : shipped("ablations")) {
    StudyConfig study;
    ASSERT_EQ(message_of<ConfigError>([&] { study = read_study(path); }), "") << path;
    EXPECT_GE(study.seeds.size(), 3u) << path;
    EXPECT_FALSE(study.question.empty() || study.claim.empty()) << path;
    for (const AxisConfig& axis : study.axes)
      for (const VariantConfig& variant : axis.variants) {
        std::vector<std::string> overrides = study.set;
        overrides.insert(overrides.end(), variant.set.begin(), variant.set.end());
        EXPECT_EQ(message_of<ConfigError>([&] { check_config(read_config(study.config, overrides)); }), "")
            << path << variant.name;
      }
  }
}

// ---- Studies

TEST_F(ConfigReader, ReadsAStudy) {
  const StudyConfig study = read_study(
      write("s.yaml",
            "config: sub/c.yaml\nseeds: [1, 2]\nset: [optimizer.lr=1e-3]\n"
            "axes:\n  - name: a\n    variants:\n      - {name: \"3:1\", set: [model.full_attention_interval=4]}\n"));
  EXPECT_EQ(without_folder(study.config), "sub/c.yaml");
  EXPECT_EQ(study.seeds, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(study.axes.at(0).variants.at(0).name, "3:1");
  EXPECT_EQ(study.axes[0].variants[0].set, std::vector<std::string>{"model.full_attention_interval=4"});
}

TEST_F(ConfigReader, OverridesOfAStudyAreForAllItsRuns) {
  const std::string path = write("s.yaml",
                                 "config: c.yaml\nseeds: [1]\nset: [run.steps=9]\n"
                                 "axes: [{name: a, variants: [{name: x, set: [optimizer.lr=1]}]}]\n");
  EXPECT_EQ(read_study(path, {"run.steps=7"}).set, (std::vector<std::string>{"run.steps=9", "run.steps=7"}));
  const auto refused = [&](const char* set) {
    return without_folder(message_of<ConfigError>([&] { read_study(path, {set}); }));
  };
  EXPECT_NE(refused("optimizer.lr=2").find("varies optimizer.lr (axis a)"), std::string::npos);
  EXPECT_NE(refused("train.seed=4").find("comes from seeds"), std::string::npos);
  EXPECT_NE(refused("run.dir=x").find("comes from --dir"), std::string::npos);
}

TEST_F(ConfigReader, RefusesStudiesThatCannotBe) {
  const auto study_error = [&](const std::string& text) {
    return without_folder(message_of<ConfigError>([&] { read_study(write("s.yaml", text)); }));
  };
  const std::string axes = "axes: [{name: a, variants: [{name: x, set: [optimizer.lr=1]}]}]\n";
  EXPECT_EQ(study_error("config: c.yaml\nseeds: [1]\naxis: []\n"), "s.yaml:3: axis: unknown key, did you mean axes?");
  EXPECT_EQ(study_error("seeds: [1]\n" + axes),
            "s.yaml: config is not set, but a study needs the config that it varies");
  EXPECT_EQ(study_error("config: c.yaml\n" + axes),
            "s.yaml: seeds is empty, but a study needs at least one, as in seeds: [1, 2, 3]");
  EXPECT_EQ(study_error("config: c.yaml\nseeds: [1, 1]\n" + axes), "s.yaml: seed 1 stands twice");
  EXPECT_EQ(study_error("config: c.yaml\nseeds: [1]\naxes: [{name: a/b, variants: []}]\n").substr(0, 36),
            "s.yaml: an axis has the name a/b, bu");
  for (const char* set : {"train.seed=3", "data.validation_fraction=0.1", "train.seq_length=32", "run.steps=7"})
    EXPECT_NE(
        study_error(concat("config: c.yaml\nseeds: [1]\naxes: [{name: a, variants: [{name: x, set: [", set, "]}]}]"))
            .find("cannot be compared"),
        std::string::npos)
        << set;
}

}  // namespace
}  // namespace braid
