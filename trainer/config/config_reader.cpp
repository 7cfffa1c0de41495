#include "trainer/config/config_reader.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <utility>

#include "kernels/core/nearest_words.h"
#include "kernels/core/stream.h"
#include "trainer/config/config_help.h"
#include "trainer/config/config_visit.h"
#include "trainer/config/foreign_keys.h"
#include "trainer/config/study_config.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTextBytes = 1 << 20;
constexpr size_t kMaxDepth = 32;
constexpr int kMaxFiles = 64;  // of one config, its bases and theirs
constexpr const char* kBaseKey = "base";

// Where values are stated: a file, or an override on the command line.
struct Origin {
  std::string name;
  bool is_file = true;

  template <class... Parts>
  [[noreturn]] void fail(int line, const std::string& path, const Parts&... what) const {
    const std::string place = is_file ? concat(name, ":", line) : name;
    throw ConfigError(concat(place, ": ", path, path.empty() ? "" : ": ", what...));
  }
};

// ---- Text -> tree

struct Node {
  enum class Kind { kNothing, kPlain, kQuoted, kList, kMapping };
  Kind kind = Kind::kNothing;
  int line = 1;
  std::string text;               // of a scalar
  std::vector<Node> items;        // of a list; the values of a mapping
  std::vector<std::string> keys;  // of a mapping
  std::vector<int> key_lines;
};

// Builds the tree from the parser's events and refuses at the event what a config may not hold, so the tree of a
// hostile input never grows.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(const Origin& origin, const std::string& path, const std::string& text)
      : origin_(origin), path_(path), text_(text) {}

  Node take_root() { return std::move(root_); }
  bool has_block_style() const { return has_block_style_; }  // a list or mapping without brackets

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (num_documents_++ > 0) fail(mark, "a second document starts here; a config is one document");
  }
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark& mark, const std::string& name) override {
    fail(mark, "anchors (&", name, ") are not allowed");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { fail(mark, "aliases (*name) are not allowed"); }

  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (expects_key()) fail(mark, "a key is missing");
    // The parser gives an empty value the place of whatever follows it.
    const bool in_mapping = !open_.empty() && open_.back().node.kind == Node::Kind::kMapping;
    add({Node::Kind::kNothing, in_mapping ? open_.back().node.key_lines.back() : line_of(mark)});
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, const std::string& value) override {
    const bool quoted = tag == "!";  // how the parser marks it; also a tag of its own, seen only in the text
    if (quoted ? text_.compare(mark.pos, 1, "!") == 0 : tag != "?") fail_tag(mark);
    if (value.find('\0') != std::string::npos) fail(mark, "text may not hold a zero byte");
    if (expects_key()) return begin_key(mark, value, quoted);
    add({quoted ? Node::Kind::kQuoted : Node::Kind::kPlain, line_of(mark), value});
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value style) override {
    open(mark, tag, style, Node::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value style) override {
    open(mark, tag, style, Node::Kind::kMapping);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    Node node;
    std::map<std::string, int> line_of_key;
  };

  static int line_of(const YAML::Mark& mark) { return mark.line + 1; }

  template <class... Parts>
  [[noreturn]] void fail(const YAML::Mark& mark, const Parts&... what) const {
    std::string path = path_;
    for (const Open& open : open_) {
      const Node& node = open.node;
      if (node.kind == Node::Kind::kList) path += concat("[", node.items.size(), "]");
      else if (node.keys.size() > node.items.size()) path = join_keys(path, node.keys.back());
    }
    origin_.fail(line_of(mark), path, what...);
  }
  [[noreturn]] void fail_tag(const YAML::Mark& mark) const { fail(mark, "tags (!name) are not allowed"); }

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == Node::Kind::kMapping &&
           open_.back().node.keys.size() == open_.back().node.items.size();
  }

  void begin_key(const YAML::Mark& mark, const std::string& key, bool quoted) {
    if (key == "<<" && !quoted) fail(mark, "merge keys (<<) are not allowed; use base: file.yaml");
    Node& node = open_.back().node;
    node.keys.push_back(key);
    node.key_lines.push_back(line_of(mark));
    const auto [first, is_new] = open_.back().line_of_key.emplace(key, line_of(mark));
    if (is_new) return;
    if (origin_.is_file) fail(mark, "duplicate key, first stated in line ", first->second);
    fail(mark, "duplicate key");
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::EmitterStyle::value style, Node::Kind kind) {
    if (tag != "?" && !tag.empty()) fail_tag(mark);
    // The parser also takes a bracket that is never closed for a key.
    if (expects_key()) fail(mark, "a list or a mapping stands where a key is expected; is a bracket not closed?");
    if (open_.size() == kMaxDepth) fail(mark, "nested deeper than ", kMaxDepth, " levels");
    has_block_style_ |= style == YAML::EmitterStyle::Block;
    open_.push_back({{kind, line_of(mark)}, {}});
  }
  void close() {
    Node node = std::move(open_.back().node);
    open_.pop_back();
    add(std::move(node));
  }
  void add(Node node) {
    if (open_.empty()) root_ = std::move(node);
    else open_.back().node.items.push_back(std::move(node));
  }

  const Origin& origin_;
  const std::string& path_;
  const std::string& text_;
  int num_documents_ = 0;
  bool has_block_style_ = false;
  Node root_;
  std::vector<Open> open_;
};

// The first line that a tab indents, outside of comments and empty lines; 0 if none is.
int line_indented_by_tab(const std::string& text) {
  Loud<std::istringstream> in(text);
  int number = 1;
  for (std::string line; std::getline(in, line); ++number) {
    const size_t first = line.find_first_not_of(" \t");
    if (first != std::string::npos && line[first] != '#' && line.substr(0, first).find('\t') != std::string::npos)
      return number;
  }
  return 0;
}

// Bytes of the UTF-8 character that starts at `i`; 0 if none does.
size_t utf8_length(const std::string& text, size_t i) {
  const auto byte = [&](size_t j) -> uint32_t { return j < text.size() ? static_cast<unsigned char>(text[j]) : 0; };
  const uint32_t first = byte(i);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  uint32_t character = first & (0x7f >> length);
  for (size_t j = 1; j < length; ++j) {
    if ((byte(i + j) & 0xc0) != 0x80) return 0;
    character = character << 6 | (byte(i + j) & 0x3f);
  }
  const bool overlong = (length == 3 && character < 0x800) || (length == 4 && character < 0x10000);
  const bool surrogate = character >= 0xd800 && character <= 0xdfff;
  return overlong || surrogate || character > 0x10ffff ? 0 : length;
}

// The parser ends its input at a byte 4 and replaces bytes that are not UTF-8 without a word.
void check_characters(const std::string& text, const Origin& origin, const std::string& path) {
  int line = 1;
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte == '\n') ++line;
    else if ((byte < 0x20 && byte != '\t') || byte == 0x7f) origin.fail(line, path, "control character; is this text?");
    const size_t length = utf8_length(text, i);
    if (length == 0) origin.fail(line, path, "bytes that are not UTF-8; is this text?");
    i += length;
  }
}

void drop_byte_order_mark_and_carriage_returns(std::string& text) {
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  std::string lines;
  lines.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] != '\r' || i + 1 == text.size() || text[i + 1] != '\n') lines += text[i];
  text = std::move(lines);
}

// `path` is what the text is the value of; empty for a file.
Node parse_yaml(std::string text, const Origin& origin, const std::string& path) {
  if (text.size() > kMaxTextBytes) origin.fail(1, path, "more than ", kMaxTextBytes, " bytes of YAML");
  drop_byte_order_mark_and_carriage_returns(text);
  check_characters(text, origin, path);
  TreeBuilder builder(origin, path, text);
  try {
    Loud<std::istringstream> in(text);
    YAML::Parser parser(in);
    while (parser.HandleNextDocument(builder)) {}
  } catch (const YAML::Exception& e) {
    // An anchor is refused where it is defined, so every alias is one to nothing.
    const bool is_alias = e.msg.starts_with(YAML::ErrorMsg::UNKNOWN_ANCHOR);
    const int tab = line_indented_by_tab(text);
    if (tab > 0 && tab <= std::max(0, e.mark.line) + 1 && !is_alias)
      origin.fail(tab, path, "not valid YAML: a tab indents this line; YAML takes spaces only");
    const char* advice = e.msg.starts_with("end of map flow") ? "; a space belongs behind each colon" : "";
    origin.fail(std::max(0, e.mark.line) + 1, path,
                is_alias ? "aliases (*name) are not allowed" : concat("not valid YAML: ", e.msg, advice));
  }
  if (!origin.is_file && builder.has_block_style())
    origin.fail(0, path, "lists are written [a, b] and mappings {a: b} here; text with \": \" or \"- \" needs quotes");
  return builder.take_root();
}

// ---- Unknown keys

std::string last_key(const std::string& dotted) { return dotted.substr(dotted.rfind('.') + 1); }

// Keys whose last part is near enough to `key` to be what was meant.
std::vector<std::string> nearest_keys(const std::string& key, const std::vector<std::string>& keys) {
  std::vector<std::string> last, nearest;
  for (const std::string& dotted : keys) last.push_back(last_key(dotted));
  for (const std::string& word : nearest_words(key, last))
    for (const std::string& dotted : keys)
      if (last_key(dotted) == word && std::find(nearest.begin(), nearest.end(), dotted) == nearest.end()) {
        nearest.push_back(dotted);
        break;
      }
  return nearest;
}

template <ConfigSection Section>
void append_all_keys(std::vector<std::string>& keys, Section& section, const std::string& path) {
  visit_keys(section, path, [&](const std::string& dotted, auto& value, const char*) {
    keys.push_back(dotted);
    using Value = std::remove_reference_t<decltype(value)>;
    if constexpr (ConfigSectionList<Value>) {
      typename Value::value_type element;
      append_all_keys(keys, element, dotted + "[]");
    }
  });
}

std::vector<std::string> all_keys() {
  RunConfig config;
  std::vector<std::string> keys;
  append_all_keys(keys, config, "");
  return keys;
}

// "path.key" as others write it, or the key by itself.
const ForeignKey* find_foreign(const std::string& path, const std::string& key) {
  const std::string dotted = join_keys(path, key);
  for (const std::string& name : {dotted, key})
    for (const ForeignKey& foreign : kForeignKeys)
      if (name == foreign.name) return &foreign;
  return nullptr;
}

std::string translation(const ForeignKey& foreign) {
  const std::string note = foreign.note;
  if (*foreign.key == '\0') return "unknown key, leave it out: " + note;
  return concat("unknown key, here it is called ", foreign.key, note.empty() ? "" : " (" + note + ")");
}

// Where the key stands elsewhere; empty if nowhere.
std::string elsewhere(const std::string& key) {
  std::vector<std::string> same_name;
  for (const std::string& dotted : all_keys())
    if (last_key(dotted) == key) same_name.push_back(dotted);
  return same_name.empty() ? "" : "unknown key here, it exists as " + joined(same_name, " and ");
}

// What to write instead of an unknown key; `siblings` are the keys that are known in its place.
std::string advice(const std::string& path, const std::string& key, const std::vector<std::string>& siblings) {
  const ForeignKey* foreign = find_foreign(path, key);
  if (foreign && join_keys(path, key) == foreign->name && !path.empty()) return translation(*foreign);
  if (const std::string place = elsewhere(key); !place.empty()) return place;
  if (foreign) return translation(*foreign);

  const std::vector<std::string> all = all_keys();
  std::vector<std::string> nearest = nearest_keys(key, siblings);
  if (nearest.empty()) nearest = nearest_keys(key, all);
  if (!nearest.empty()) return concat("unknown key, did you mean ", joined(nearest, " or "), "?");
  return "unknown key; known here: " + joined(siblings, ", ");
}

// ---- Tree -> structs

// The value as an error message shows it.
std::string shown(const Node& node) {
  constexpr size_t kLongest = 60;
  switch (node.kind) {
    case Node::Kind::kNothing: return "nothing";
    case Node::Kind::kList: return "a list";
    case Node::Kind::kMapping: return "a mapping";
    case Node::Kind::kPlain:
    case Node::Kind::kQuoted: break;
  }
  const std::string text = node.text.size() > kLongest ? node.text.substr(0, kLongest) + "..." : node.text;
  return node.kind == Node::Kind::kQuoted ? "the text " + yaml_text(text) : text;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Length of the digits at the start of `text`; npos where a further digit follows a leading zero, which elsewhere means
// octal.
size_t digits_length(std::string_view text) {
  const size_t length = std::find_if_not(text.begin(), text.end(), is_digit) - text.begin();
  return length > 1 && text[0] == '0' ? std::string_view::npos : length;
}

bool is_integer(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && digits_length(text) == text.size();
}

bool is_decimal(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  const size_t whole = digits_length(text);
  if (whole == 0 || whole == std::string_view::npos) return false;
  text.remove_prefix(whole);
  const auto take_digits = [&] {
    const size_t length = std::find_if_not(text.begin(), text.end(), is_digit) - text.begin();
    text.remove_prefix(length);
    return length > 0;
  };
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    if (!take_digits()) return false;
  }
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
    if (!take_digits()) return false;
  }
  return text.empty();
}

class Reader {
 public:
  explicit Reader(const Origin& origin) : origin_(origin) {}

  // Only what the tree states is changed, so reading one tree after the other merges them.
  template <ConfigSection Section>
  void read(const Node& node, const std::string& path, Section& section) const {
    expect(node.kind == Node::Kind::kMapping, node, path, "a mapping of keys");
    for (size_t i = 0; i < node.keys.size(); ++i) {
      const std::string& key = node.keys[i];
      if (path.empty() && key == kBaseKey && origin_.is_file) continue;
      std::vector<std::string> known;
      bool found = false;
      section.visit([&](const char* name, auto& value, const char*) {
        known.push_back(name);
        if (key != name) return;
        found = true;
        read(node.items[i], join_keys(path, key), value);
      });
      if (path.empty() && origin_.is_file) known.push_back(kBaseKey);
      if (!found) fail_unknown(node, i, path, known);
    }
  }

  // A section of others is answered by the first of its keys that is known to be theirs, which says more.
  [[noreturn]] void fail_unknown(const Node& parent, size_t i, const std::string& path,
                                 const std::vector<std::string>& known) const {
    const std::string& key = parent.keys[i];
    const std::string dotted = join_keys(path, key);
    const auto has_axes = [](const std::vector<std::string>& keys) {
      return std::find(keys.begin(), keys.end(), "axes") != keys.end();
    };
    if (path.empty() && has_axes(parent.keys) && !has_axes(known))
      origin_.fail(parent.key_lines[i], dotted, "unknown key; this is a study, which braid ablate takes");
    const Node& section = parent.items[i];
    for (size_t j = 0; j < section.keys.size(); ++j)
      if (const ForeignKey* foreign = find_foreign(dotted, section.keys[j]))
        origin_.fail(section.key_lines[j], join_keys(dotted, section.keys[j]), translation(*foreign));
    if (nearest_keys(key, known).empty() && elsewhere(key).empty() && !find_foreign(path, key))
      for (size_t j = 0; j < section.keys.size(); ++j)
        if (const std::string place = elsewhere(section.keys[j]); !place.empty())
          origin_.fail(section.key_lines[j], join_keys(dotted, section.keys[j]), place);
    origin_.fail(parent.key_lines[i], dotted, advice(path, key, known));
  }

  template <class Element>
  void read(const Node& node, const std::string& path, std::vector<Element>& list) const {
    expect(node.kind == Node::Kind::kList, node, path, "a list like [a, b]");
    list.assign(node.items.size(), Element{});
    for (size_t i = 0; i < list.size(); ++i) read(node.items[i], concat(path, "[", i, "]"), list[i]);
  }

  template <ConfigEnum Enum>
  void read(const Node& node, const std::string& path, Enum& value) const {
    const auto& names = EnumNames<Enum>::kNames;
    const auto name = std::find(names.begin(), names.end(), is_scalar(node) ? node.text : "");
    expect(name != names.end(), node, path, "one of " + enum_words<Enum>(", "));
    value = static_cast<Enum>(name - names.begin());
  }

  void read(const Node& node, const std::string& path, bool& value) const {
    expect(is_plain(node) && (node.text == "true" || node.text == "false"), node, path, "true or false");
    value = node.text == "true";
  }

  void read(const Node& node, const std::string& path, std::string& value) const {
    expect(is_scalar(node), node, path, "text");
    value = node.text;
  }

  void read(const Node& node, const std::string& path, int64_t& value) const {
    expect(is_plain(node) && is_integer(node.text), node, path, "an integer, written in plain decimal digits");
    read_number(node, path, value);
  }

  void read(const Node& node, const std::string& path, double& value) const {
    expect(is_plain(node) && is_decimal(node.text), node, path, "a number like 3, 0.1 or 3e-4");
    read_number(node, path, value);
  }

  // `base` is one file or a list of them; it is the file reader's, not the config's.
  std::vector<Node> bases(const Node& root) const {
    if (root.kind != Node::Kind::kMapping) return {};
    const auto key = std::find(root.keys.begin(), root.keys.end(), kBaseKey);
    if (key == root.keys.end()) return {};
    const Node& base = root.items[key - root.keys.begin()];
    std::vector<Node> files = base.kind == Node::Kind::kList ? base.items : std::vector<Node>{base};
    for (const Node& file : files)
      expect(is_scalar(file) && !file.text.empty(), file, kBaseKey, "a file name or a list of file names");
    return files;
  }

 private:
  static bool is_plain(const Node& node) { return node.kind == Node::Kind::kPlain; }
  static bool is_scalar(const Node& node) { return is_plain(node) || node.kind == Node::Kind::kQuoted; }

  void expect(bool ok, const Node& node, const std::string& path, const std::string& what) const {
    if (!ok) origin_.fail(node.line, path, "expected ", what, ", got ", shown(node));
  }

  template <class Number>
  void read_number(const Node& node, const std::string& path, Number& value) const {
    const char* const end = node.text.data() + node.text.size();
    const auto [stop, error] = std::from_chars(node.text.data(), end, value);
    using Limits = std::numeric_limits<Number>;
    expect(error == std::errc() && stop == end, node, path,
           concat("a number within ", yaml_text(Limits::lowest()), " and ", yaml_text(Limits::max()),
                  std::is_integral_v<Number> ? "" : " that a double can hold"));
  }

  const Origin& origin_;
};

// ---- Files and overrides

// ~ and $HOME at the beginning of a path, as a shell would read them. Other variables are not expanded but refused.
std::string with_home(const std::string& path) {
  for (const std::string_view start : {"~", "$HOME", "${HOME}"}) {
    if (!path.starts_with(start) || (path.size() > start.size() && path[start.size()] != '/')) continue;
    const char* home = std::getenv("HOME");
    check<ConfigError>(home && *home, path, ": ", start, " cannot be expanded, as HOME is not set");
    return home + path.substr(start.size());
  }
  check<ConfigError>(!path.starts_with('$') && !path.starts_with('~'), path,
                     ": of what begins with $ or ~ only ~/ and $HOME/ are expanded; write the path out, or ./", path);
  return path;
}

// Paths of what is read that are still relative were stated by the text that has just been read.
void resolve_input_paths(RunConfig& config, const fs::path& folder) {
  const auto resolve = [&](std::string& path) {
    if (!path.empty()) path = (folder / with_home(path)).lexically_normal().string();
  };
  if (config.init.from.starts_with(kHuggingFacePrefix)) {
    std::string from = config.init.from.substr(kHuggingFacePrefix.size());
    resolve(from);
    config.init.from = std::string(kHuggingFacePrefix) + from;
  } else {
    resolve(config.init.from);
  }
  const auto resolve_all = [&](TokenFiles& files) {
    resolve(files.dataset);
    for (std::vector<std::string>* paths : {&files.shards, &files.text})
      for (std::string& path : *paths) resolve(path);
  };
  for (SourceConfig& source : config.data.sources) resolve_all(source);
  for (TokenFiles& set : config.data.validation_sets) resolve_all(set);
}

// Stops soon behind the longest text allowed, so that an endless file does no harm. False: errno says why.
bool read_text(const fs::path& path, std::string& text) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) return false;
  char block[16384];
  size_t bytes = 0;
  while (text.size() <= kMaxTextBytes && (bytes = std::fread(block, 1, sizeof block, file.get())) > 0)
    text.append(block, bytes);
  return std::ferror(file.get()) == 0;
}

class FileReader {
 public:
  explicit FileReader(RunConfig& config) : config_(config) {}

  // `name` is how messages call the file, `asked_by` what they say in front if another file asked for it.
  void read(const fs::path& path, const std::string& name, const std::string& asked_by) {
    check<ConfigError>(++num_files_ <= kMaxFiles, asked_by, "more than ", kMaxFiles, " files make up this config");
    const fs::path identity = fs::weakly_canonical(path);
    check<ConfigError>(std::find(open_.begin(), open_.end(), identity) == open_.end(), asked_by, name,
                       " is already being read: the bases form a circle");
    check<ConfigError>(!fs::exists(path / "config.resolved.yaml"), asked_by, name, " is a run folder; its config is ",
                       (fs::path(name) / "config.resolved.yaml").string());
    std::string text;
    const bool readable = read_text(path, text);
    check<ConfigError>(readable, asked_by, "cannot read ", name, ": ", reason(errno));

    const Origin origin{name};
    const Node root = parse_yaml(std::move(text), origin, "");
    const fs::path folder = fs::weakly_canonical(fs::absolute(path).parent_path());
    const Reader reader(origin);
    open_.push_back(identity);
    for (const Node& base : reader.bases(root)) {
      const std::string base_name = (fs::path(name).parent_path() / base.text).lexically_normal().string();
      read(folder / base.text, base_name, concat(name, ":", base.line, ": ", kBaseKey, ": "));
    }
    open_.pop_back();
    reader.read(root, "", config_);
    resolve_input_paths(config_, folder);
  }

 private:
  RunConfig& config_;
  std::vector<fs::path> open_;  // the file being read and those that asked for it
  int num_files_ = 0;
};

std::vector<std::string> split_at_dots(const std::string& dotted) {
  std::vector<std::string> keys;
  Loud<std::istringstream> in(dotted + ".");
  for (std::string key; std::getline(in, key, '.');) keys.push_back(key);
  return keys;
}

void apply_override(RunConfig& config, const std::string& text) {
  const Origin origin{"command line", false};
  const size_t equals = std::min(text.find('='), text.size());
  const std::string dotted = text.substr(0, equals);
  const std::vector<std::string> keys = split_at_dots(dotted);
  const bool has_empty_key = std::find(keys.begin(), keys.end(), "") != keys.end();
  if (equals == text.size() || has_empty_key || keys.size() > kMaxDepth)
    origin.fail(0, yaml_text(dotted), "an override is written section.key=value");

  const std::string value = text.substr(equals + 1);
  Node node = parse_yaml(value, origin, dotted);
  // A comment or a line break would make the value another than the one that was typed.
  if (node.kind == Node::Kind::kPlain && node.text != value)
    origin.fail(0, dotted, "the value reads as ", shown(node), "; put quotes around text with spaces or #");
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    Node parent{Node::Kind::kMapping};
    parent.keys.push_back(*key);
    parent.key_lines.push_back(0);
    parent.items.push_back(std::move(node));
    node = std::move(parent);
  }
  Reader(origin).read(node, "", config);
  resolve_input_paths(config, fs::current_path());
}

}  // namespace

void apply_overrides(RunConfig& config, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides) apply_override(config, text);
}

RunConfig read_config(const std::string& path, const std::vector<std::string>& overrides) {
  RunConfig config;
  try {
    FileReader(config).read(path, path, "");
    apply_overrides(config, overrides);
  } catch (const fs::filesystem_error& e) {  // a circle of symbolic links, a working folder that is gone
    throw ConfigError(concat("cannot read ", path, ": ", e.code().message()));
  }
  return config;
}

std::string advice_on_unknown_key(const std::string& dotted) {
  const std::vector<std::string> all = all_keys();
  // The part that is not known: "optimiser" of "optimiser.lr".
  std::string path;
  for (const std::string& key : split_at_dots(dotted)) {
    const std::string next = join_keys(path, key);
    if (std::find(all.begin(), all.end(), next) == all.end()) {
      std::vector<std::string> siblings;
      for (const std::string& known : all)
        if (known.size() > path.size() && join_keys(path, last_key(known)) == known)
          siblings.push_back(last_key(known));
      const ForeignKey* whole = find_foreign("", dotted);
      if (!whole && nearest_keys(key, siblings).empty()) whole = find_foreign(path, last_key(dotted));
      return whole ? translation(*whole) : advice(path, key, siblings);
    }
    path = next;
  }
  return "";
}

StudyConfig read_study(const std::string& path, const std::vector<std::string>& overrides) {
  StudyConfig study;
  std::string text;
  const bool readable = read_text(path, text);
  check<ConfigError>(readable, "cannot read ", path, ": ", reason(errno));
  const Origin origin{path};
  Reader(origin).read(parse_yaml(std::move(text), origin, ""), "", study);
  check<ConfigError>(!study.config.empty(), path, ": config is not set, but a study needs the config that it varies");
  check<ConfigError>(!study.axes.empty(), path, ": axes is empty, but a study varies something");
  check<ConfigError>(!study.seeds.empty(), path,
                     ": seeds is empty, but a study needs at least one, as in seeds: [1, 2, 3]");
  const fs::path config = fs::path(study.config);
  study.config = (config.is_absolute() ? config : fs::path(path).parent_path() / config).lexically_normal().string();
  for (size_t i = 0; i < study.seeds.size(); ++i)
    check<ConfigError>(
        std::find(study.seeds.begin(), study.seeds.begin() + i, study.seeds[i]) == study.seeds.begin() + i, path,
        ": seed ", study.seeds[i], " stands twice");

  const auto check_name = [&](const std::string& what, const std::string& name) {
    const std::string_view legal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-";
    check<ConfigError>(!name.empty() && name.find_first_not_of(legal) == std::string::npos, path, ": ", what,
                       " has the name ", yaml_text(name),
                       ", but names are made of A-Z a-z 0-9 _ . : -, as folders are named after them");
  };
  const auto key_of = [](const std::string& set) { return set.substr(0, set.find('=')); };
  for (const std::string& set : overrides) {
    const std::string key = key_of(set);
    check<ConfigError>(key != "train.seed" && key != "run.dir", set, ": ", key, " of a study's runs comes from ",
                       key == "run.dir" ? "--dir" : concat("seeds in ", path));
    for (const AxisConfig& axis : study.axes)
      for (const VariantConfig& variant : axis.variants)
        for (const std::string& of_variant : variant.set)
          check<ConfigError>(key_of(of_variant) != key, set, ": ", path, " varies ", key, " (axis ", axis.name, ")");
    study.set.push_back(set);
  }
  std::set<std::string> axis_names;
  for (const AxisConfig& axis : study.axes) {
    check_name("an axis", axis.name);
    check<ConfigError>(axis_names.insert(axis.name).second, path, ": two axes are called ", axis.name);
    check<ConfigError>(axis.variants.size() > 0, path, ": axis ", axis.name, " has no variants");
    std::set<std::string> names;
    for (const VariantConfig& variant : axis.variants) {
      check_name("a variant of axis " + axis.name, variant.name);
      check<ConfigError>(names.insert(variant.name).second, path, ": axis ", axis.name, " has two variants ",
                         variant.name);
      for (const std::string& set : variant.set)
        for (const char* front :
             {"train.seed", "train.global_batch_size", "train.seq_length", "data", "run.dir", "run.steps"})
          check<ConfigError>(!(set.starts_with(std::string(front) + "=") || set.starts_with(std::string(front) + ".")),
                             path, ": variant ", variant.name, " of axis ", axis.name, " sets ", set,
                             ": runs that see other rows, ",
                             "in another order or number, cannot be compared; set it for all runs with set: [...]");
    }
  }
  return study;
}

RunConfig read_config_text(const std::string& yaml, const std::string& name) {
  RunConfig config;
  const Origin origin{name};
  const Reader reader(origin);
  const Node root = parse_yaml(yaml, origin, "");
  check<ConfigError>(reader.bases(root).empty(), name, ": a stored config has no base");
  reader.read(root, "", config);
  return config;
}

}  // namespace braid
