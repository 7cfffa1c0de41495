#include "trainer/config/config_help.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/core/nearest_words.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"
#include "trainer/config/foreign_keys.h"
#include "trainer/config/study_config.h"

namespace braid {
namespace {

using Json = nlohmann::ordered_json;

template <class Value>
std::string type_text() {
  if constexpr (ConfigSectionList<Value>) return "a list of sections";
  else if constexpr (kIsList<Value>) return "a list, each " + type_text<typename Value::value_type>();
  else if constexpr (ConfigSection<Value>) return "a section";
  else if constexpr (std::is_enum_v<Value>) return "one of " + enum_words<Value>(", ");
  else if constexpr (std::is_same_v<Value, bool>) return "true or false";
  else if constexpr (std::is_same_v<Value, int64_t>) return "an integer";
  else if constexpr (std::is_same_v<Value, double>) return "a number";
  else return "text";
}

struct KeyHelp {
  std::string key, doc, type, value;  // value: the default
  bool is_section = false;
};

template <ConfigSection Section>
void append_help(std::vector<KeyHelp>& out, Section& section, const std::string& path) {
  visit_keys(section, path, [&](const std::string& dotted, auto& value, const char* doc) {
    using Value = std::remove_reference_t<decltype(value)>;
    KeyHelp help{dotted, doc, type_text<Value>(), "", ConfigSection<Value> || ConfigSectionList<Value>};
    if constexpr (!ConfigSection<Value> && !ConfigSectionList<Value>) help.value = yaml_text(value);
    out.push_back(std::move(help));
    if constexpr (ConfigSectionList<Value>) {
      typename Value::value_type element;
      append_help(out, element, dotted + "[]");
    }
  });
}

std::vector<KeyHelp> all_help() {
  RunConfig config;
  std::vector<KeyHelp> help;
  append_help(help, config, "");
  return help;
}

std::string without_brackets(std::string key) {
  for (size_t at; (at = key.find('[')) != key.npos;)
    key.erase(at, key.find(']', at) - at + (key.find(']', at) != key.npos));
  return key;
}

template <class Value>
Json schema_of(Value& value, const char* doc);

template <ConfigSection Section>
Json schema_of_section(Section& section) {
  Json properties = Json::object();
  section.visit([&](const char* name, auto& value, const char* doc) { properties[name] = schema_of(value, doc); });
  return {{"type", "object"}, {"additionalProperties", false}, {"properties", properties}};
}

template <class Value>
Json schema_of(Value& value, const char* doc) {
  Json schema;
  if constexpr (ConfigSection<Value>) {
    schema = schema_of_section(value);
  } else if constexpr (kIsList<Value>) {
    typename Value::value_type element{};
    schema = {{"type", "array"}, {"items", schema_of(element, "")}};
  } else if constexpr (std::is_enum_v<Value>) {
    schema = {{"enum", EnumNames<Value>::kNames}, {"default", name_of_enum(value)}};
  } else if constexpr (std::is_same_v<Value, bool>) {
    schema = {{"type", "boolean"}, {"default", value}};
  } else if constexpr (std::is_same_v<Value, int64_t>) {
    schema = {{"type", "integer"}, {"default", value}};
  } else if constexpr (std::is_same_v<Value, double>) {
    schema = {{"type", "number"}, {"default", value}};
  } else {
    schema = {{"type", "string"}, {"default", value}};
  }
  if (*doc) schema["description"] = doc;
  return schema;
}

template <ConfigSection File>
Json schema_of_file(const char* title) {
  File file;
  Json schema = {{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", title}};
  schema.update(schema_of_section(file));
  return schema;
}

}  // namespace

std::string explain_key(const std::string& asked) {
  const std::vector<KeyHelp> all = all_help();
  const std::string key = without_brackets(asked);
  std::vector<const KeyHelp*> found;
  for (const KeyHelp& help : all)
    if (without_brackets(help.key) == key) found.push_back(&help);
  if (found.empty() && key.find('.') == key.npos)
    for (const KeyHelp& help : all)
      if (help.key.substr(help.key.rfind('.') + 1) == key) found.push_back(&help);
  if (found.empty()) throw ConfigError(asked + ": " + advice_on_unknown_key(key));
  std::string text;
  for (const KeyHelp* help : found) {
    text += concat(text.empty() ? "" : "\n", help->key, ": ", help->doc, "\n  ", help->type);
    if (!help->is_section) text += "; default " + help->value;
    text += "\n";
    std::vector<std::string> others;
    for (const ForeignKey& foreign : kForeignKeys)
      if (help->key == foreign.key) others.push_back(foreign.name);
    if (!others.empty()) text += "  others call it " + joined(others, ", ") + "\n";
    if (help->is_section) {
      const std::string front = help->key + (help->type == "a list of sections" ? "[]." : ".");
      for (const KeyHelp& below : all)
        if (below.key.starts_with(front) && below.key.find('.', front.size()) == std::string::npos)
          text += "  " + below.key + ": " + below.doc + "\n";
    }
  }
  return text;
}

std::string config_schema() {
  Json schema = schema_of_file<RunConfig>("Braid config");
  const Json file = {{"type", "string"}};
  schema["properties"]["base"] = {{"description", "files that are read first, relative to this one"},
                                  {"oneOf", {file, {{"type", "array"}, {"items", file}}}}};
  return schema.dump(1) + "\n";
}

std::string study_schema() {
  Json schema = schema_of_file<StudyConfig>("Braid study");
  schema["required"] = {"config", "seeds", "axes"};
  schema["properties"]["axes"]["items"]["required"] = {"name", "variants"};
  schema["properties"]["axes"]["items"]["properties"]["variants"]["items"]["required"] = {"name"};
  return schema.dump(1) + "\n";
}

}  // namespace braid
