#include "trainer/cli/suggestion.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/nearest_words.h"

namespace braid {
namespace {

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(sub->get_name());
  return names;
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::string sentence(const std::string& what, const std::string& word, const std::vector<std::string>& known) {
  const std::vector<std::string> nearest = nearest_words(word, known);
  if (!nearest.empty()) return concat(what, ", did you mean ", joined(nearest, " or "), "?");
  return concat(what, known.empty() ? "; there are none" : "; there are ", joined(known, ", "));
}

// Empty if every word is known in its place.
std::string unknown_word(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* at = &app;
  std::string path = app.get_name();
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word == "--") return "";
    if (word.size() > 1 && word[0] == '-' && !std::isdigit(static_cast<unsigned char>(word[1]))) {
      word.erase(std::min(word.find('='), word.size()));
      const CLI::Option* option = at->get_option_no_throw(word);
      if (!option) return sentence(concat(path, " has no option ", word), word, option_names(*at));
      // The words of its value are not looked at.
      if (option->get_items_expected_min() > 0 && std::string(argv[i]).find('=') == std::string::npos) ++i;
      continue;
    }
    if (at->get_subcommands([](const CLI::App*) { return true; }).empty()) continue;  // a positional argument
    const auto named = at->get_subcommands([&](const CLI::App* sub) { return sub->check_name(word); });
    const CLI::App* sub = named.empty() ? nullptr : named.front();
    if (!sub) return sentence(concat(path, " has no sub-command ", word), word, subcommand_names(*at));
    at = sub;
    path += " " + word;
  }
  return "";
}

// The innermost sub-command that was given, and how it is called.
std::pair<const CLI::App*, std::string> chosen_command(const CLI::App& app) {
  const CLI::App* at = &app;
  std::string path = app.get_name();
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    path += " " + at->get_name();
  }
  return {at, path};
}

}  // namespace

std::string empty_argument(const CLI::App& app) {
  const auto [at, path] = chosen_command(app);
  for (const CLI::Option* option : at->get_options())
    for (const std::string& text : option->results())
      if (text.empty()) return concat(path, ": ", option->get_name(), " is empty; is a variable of the shell not set?");
  return "";
}

std::string command_line_error(const CLI::App& app, int argc, const char* const* argv, const std::string& reason) {
  if (const std::string unknown = unknown_word(app, argc, argv); !unknown.empty()) return unknown;
  const auto [at, path] = chosen_command(app);
  const std::vector<std::string> names = subcommand_names(*at);
  if (!names.empty()) return concat(path, " needs a sub-command: ", joined(names, ", "));
  return concat(path, ": ", reason, " (", path, " --help)");
}

}  // namespace braid
