#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/core/enum_names.h"

namespace braid {

// A struct whose one `visit(key)` lists its YAML keys: key(name, value, documentation).
template <class T>
concept ConfigSection = requires(T& section) {
  section.visit([](const char*, auto&, const char*) {});
};

template <class T>
inline constexpr bool kIsList = false;
template <class T>
inline constexpr bool kIsList<std::vector<T>> = true;

template <class T>
concept ConfigSectionList = kIsList<T> && ConfigSection<typename T::value_type>;

template <class T>
concept ConfigEnum = std::is_enum_v<T>;

inline std::string join_keys(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

// Calls key("a.b", value, documentation) for every key of a section and of the sections below it, a section before its
// keys. What is below the elements of a list is up to `key`.
template <ConfigSection Section, class Key>
void visit_keys(Section& section, const std::string& path, Key&& key) {
  section.visit([&](const char* name, auto& value, const char* doc) {
    const std::string dotted = join_keys(path, name);
    key(dotted, value, doc);
    if constexpr (ConfigSection<std::remove_reference_t<decltype(value)>>) visit_keys(value, dotted, key);
  });
}

// The words of an enum: "a<separator>b<separator>c".
template <ConfigEnum Enum>
std::string enum_words(const char* separator) {
  std::string words;
  for (const char* word : EnumNames<Enum>::kNames) words += (words.empty() ? "" : separator) + std::string(word);
  return words;
}

// A value as YAML writes it: the shortest number that reads back to the same double, text quoted where it must be.
std::string yaml_text(bool value);
std::string yaml_text(int64_t value);
std::string yaml_text(double value);
std::string yaml_text(const std::string& value);
template <ConfigEnum Enum>
std::string yaml_text(Enum value) {
  return name_of_enum(value);
}
template <class T>
std::string yaml_text(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ", ") + yaml_text(value);
  return "[" + text + "]";
}

}  // namespace braid
