#include <algorithm>
#include <charconv>
#include <map>
#include <string_view>
#include <utility>

#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"

namespace braid {
namespace {

constexpr size_t kCommentColumn = 44, kMaxColumns = 120;
constexpr const char* kAbsent = "(absent)";

template <class Number>
std::string shortest_text(Number value) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
}

// Can text stand without quotes and still be read as this text, by us and by readers that guess types?
bool is_plain(const std::string& text) {
  const std::string_view safe = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
  const std::string_view not_first = "0123456789.-";
  if (text.empty() || text.find_first_not_of(safe) != std::string::npos) return false;
  if (not_first.find(text[0]) != std::string_view::npos) {
    // Relative paths are common enough to keep them readable; everything else might be a number.
    if (!text.starts_with("./") && !text.starts_with("../")) return false;
  }
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* word : {"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
    if (lower == word) return false;
  return true;
}

// One line of output, or what comes before its comment.
struct Line {
  std::string code, comment;
};

class YamlWriter {
 public:
  explicit YamlWriter(ConfigComments comments) : comments_(comments) {}

  template <ConfigSection Section>
  void write(Section& section, size_t indent) {
    section.visit([&](const char* name, auto& value, const char* doc) {
      using Value = std::remove_reference_t<decltype(value)>;
      const std::string key = std::string(indent, ' ') + name + ":";
      if constexpr (ConfigSection<Value>) {
        lines_.push_back({key, doc});
        write(value, indent + 2);
      } else if constexpr (ConfigSectionList<Value>) {
        lines_.push_back({value.empty() ? key + " []" : key, doc});
        for (auto& element : value) write_element(element, indent + 2);
        if (value.empty() && comments_ == ConfigComments::kYes) write_example<typename Value::value_type>(indent + 2);
      } else if constexpr (std::is_enum_v<Value>) {
        lines_.push_back({key + " " + yaml_text(value), std::string(doc) + " (" + enum_words<Value>(" | ") + ")"});
      } else {
        lines_.push_back({key + " " + yaml_text(value), doc});
      }
    });
  }

  std::string text() const {
    std::string text;
    for (const Line& line : lines_) {
      text += line.code;
      if (comments_ == ConfigComments::kYes) append_comment(text, line);
      text += '\n';
    }
    return text;
  }

 private:
  template <class Element>
  void write_element(Element& element, size_t indent) {
    const size_t first = lines_.size();
    write(element, indent + 2);
    lines_[first].code[indent] = '-';
  }

  // The keys of an element of an empty list would otherwise be documented nowhere.
  template <class Element>
  void write_example(size_t indent) {
    const size_t first = lines_.size();
    Element element;
    write_element(element, indent);
    for (size_t i = first; i < lines_.size(); ++i) lines_[i].code.insert(indent, "# ");
  }

  static void append_comment(std::string& text, const Line& line) {
    std::string_view rest = line.comment;
    size_t column = line.code.size();
    while (!rest.empty()) {
      const size_t room = kMaxColumns - kCommentColumn - 2;
      size_t length = rest.size();
      if (length > room) length = std::min(rest.rfind(' ', room), length);
      text.append(column + 1 < kCommentColumn ? kCommentColumn - column : 2, ' ');
      text.append("# ").append(rest.substr(0, length));
      rest.remove_prefix(std::min(rest.size(), length + 1));
      if (!rest.empty()) text += '\n';
      column = 0;
    }
  }

  ConfigComments comments_;
  std::vector<Line> lines_;
};

using KeyTexts = std::vector<std::pair<std::string, std::string>>;  // "a.b", value

template <ConfigSection Section>
void append_key_texts(KeyTexts& out, Section& section, const std::string& path) {
  visit_keys(section, path, [&](const std::string& dotted, auto& value, const char*) {
    using Value = std::remove_reference_t<decltype(value)>;
    if constexpr (ConfigSectionList<Value>) {
      for (size_t i = 0; i < value.size(); ++i) append_key_texts(out, value[i], dotted + "[" + std::to_string(i) + "]");
    } else if constexpr (!ConfigSection<Value>) {
      out.emplace_back(dotted, yaml_text(value));
    }
  });
}

KeyTexts key_texts(RunConfig config) {
  KeyTexts texts;
  append_key_texts(texts, config, "");
  return texts;
}

}  // namespace

std::string yaml_text(bool value) { return value ? "true" : "false"; }
std::string yaml_text(int64_t value) { return shortest_text(value); }

std::string yaml_text(double value) {
  std::string text = shortest_text(value);
  const size_t exponent = text.find('e');
  if (exponent == std::string::npos) return text;
  if (text[exponent + 2] == '0') text.erase(exponent + 2, 1);            // 3e-04 -> 3e-4
  if (text.find('.') == std::string::npos) text.insert(exponent, ".0");  // 3e-4 is a string to YAML 1.1 readers
  return text;
}

std::string yaml_text(const std::string& value) {
  if (is_plain(value)) return value;
  std::string text = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      const char* const digits = "0123456789abcdef";
      text += "\\x";
      text += digits[byte / 16];
      text += digits[byte % 16];
    } else {
      text += c;
    }
  }
  return text + '"';
}

std::string to_yaml(const RunConfig& config, ConfigComments comments) {
  RunConfig copy = config;  // visit hands out references
  YamlWriter writer(comments);
  writer.write(copy, 0);
  return writer.text();
}

std::vector<ConfigDifference> compare_configs(const RunConfig& before, const RunConfig& after) {
  const KeyTexts old_texts = key_texts(before), new_texts = key_texts(after);
  const std::map<std::string, std::string> old_values(old_texts.begin(), old_texts.end());
  const std::map<std::string, std::string> new_values(new_texts.begin(), new_texts.end());
  std::vector<ConfigDifference> differences;
  for (const auto& [key, value] : old_texts) {
    const auto found = new_values.find(key);
    if (found == new_values.end()) differences.push_back({key, value, kAbsent});
    else if (found->second != value) differences.push_back({key, value, found->second});
  }
  for (const auto& [key, value] : new_texts)
    if (!old_values.contains(key)) differences.push_back({key, kAbsent, value});
  return differences;
}

}  // namespace braid
