#include "trainer/cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>
#include <type_traits>
#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/nearest_words.h"

namespace braid {
namespace {

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; }))
    if (!sub->get_name().empty()) names.push_back(sub->get_name());  // else a group of options
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
    if (subcommand_names(*at).empty()) continue;  // a positional argument
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

// "" where no argument of the command is empty, as those of shell variables are that are not set; else what to say of
// it.
std::string empty_argument(const CLI::App& app) {
  const auto [at, path] = chosen_command(app);
  for (const CLI::Option* option : at->get_options())
    for (const std::string& text : option->results())
      if (text.empty()) return concat(path, ": ", option->get_name(), " is empty; is a variable of the shell not set?");
  return "";
}

// What is wrong with a command line that does not parse: an unknown word; else `reason`, the library's own words, with
// the command that they are about.
std::string mistake_in(const CLI::App& app, int argc, const char* const* argv, const std::string& reason) {
  if (const std::string unknown = unknown_word(app, argc, argv); !unknown.empty()) return unknown;
  const auto [at, path] = chosen_command(app);
  if (at->get_require_subcommand_min() > 0)
    return concat(path, " needs a sub-command: ", joined(subcommand_names(*at), ", "));
  return concat(path, ": ", reason, " (", path, " --help)");
}

// By itself the library reads 010 as eight, -1 as 2^64 - 1 where no number may be below 0, what is too large as the
// largest there is, and takes nan for a number in any range.
template <class T>
CLI::Validator within(T low, T high, const char* otherwise) {
  const std::string range = concat(low, " to ", high);
  const auto check = [=](const std::string& text) {
    T value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    bool is_plain = error == std::errc() && end == text.data() + text.size();
    if (std::is_integral_v<T>) is_plain = is_plain && text == std::to_string(value);
    return is_plain && low <= value && value <= high ? std::string() : concat(text, otherwise, range);
  };
  return CLI::Validator(check, range);
}

}  // namespace

Option Option::required() const { return Option(option_->required()); }
Option Option::show_default() const { return Option(option_->capture_default_str()); }
Option Option::value_name(const std::string& name) const { return Option(option_->type_name(name)); }
Option Option::one_at_a_time() const { return Option(option_->allow_extra_args(false)); }
Option Option::comma_separated() const { return Option(option_->delimiter(',')); }
Option Option::excludes(const Option& other) const { return Option(option_->excludes(other.option_)); }
Option Option::one_of(const std::vector<std::string>& words) const {
  return Option(option_->check(CLI::IsMember(words)));
}

Option Option::whole(int64_t low, int64_t high) const {
  return Option(option_->check(within(low, high, " is no whole number from ")));
}
Option Option::number(double low, double high) const {
  return Option(option_->check(within(low, high, " is no number from ")));
}

Command Command::command(const std::string& name, const std::string& what) const {
  return {app_->add_subcommand(name, what)->require_subcommand(0, 1), chosen_};
}

Command Command::needs_command() const { return {app_->require_subcommand(1), chosen_}; }

void Command::runs(Action action) const {
  app_->callback([app = app_, chosen = chosen_, action = std::move(action)] {
    if (app->get_subcommands().empty()) *chosen = action;
  });
}

template <class T>
Option Command::option(const std::string& name, T& place, const std::string& what) const {
  return Option(app_->add_option(name, place, what));
}
template Option Command::option(const std::string&, std::string&, const std::string&) const;
template Option Command::option(const std::string&, int&, const std::string&) const;
template Option Command::option(const std::string&, int64_t&, const std::string&) const;
template Option Command::option(const std::string&, uint64_t&, const std::string&) const;
template Option Command::option(const std::string&, double&, const std::string&) const;
template Option Command::option(const std::string&, std::optional<double>&, const std::string&) const;
template Option Command::option(const std::string&, std::vector<std::string>&, const std::string&) const;
template Option Command::option(const std::string&, std::vector<int64_t>&, const std::string&) const;

template <class T>
Option Command::flag(const std::string& name, T& place, const std::string& what) const {
  return Option(app_->add_flag(name, place, what));
}
template Option Command::flag(const std::string&, bool&, const std::string&) const;
template Option Command::flag(const std::string&, std::string&, const std::string&) const;

Option Command::choice(const std::string& name, const std::vector<std::string>& names,
                       std::function<void(size_t)> choose, const std::string& what) const {
  const std::function<void(const std::string&)> take = [names, choose = std::move(choose)](const std::string& word) {
    choose(static_cast<size_t>(std::find(names.begin(), names.end(), word) - names.begin()));
  };
  return Option(app_->add_option_function(name, take, what)->option_text(joined(names, "|"))).one_of(names);
}

Command Command::one_option_of(const std::string& title, const std::string& what) const {
  return {app_->add_option_group(title, what)->require_option(1), chosen_};
}

void Command::excludes(const Option& option) const { app_->excludes(option.option_); }

CommandLine::CommandLine(const std::string& what, const std::string& name, const std::string& version)
    : app_(std::make_unique<CLI::App>(what, name)) {
  app_->set_version_flag("--version", version);
  app_->require_subcommand(1);
}

CommandLine::~CommandLine() = default;

Command CommandLine::root() { return {app_.get(), &chosen_}; }

Action CommandLine::read(int argc, const char* const* argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() != 0) throw ConfigError(mistake_in(*app_, argc, argv, e.what()));
    app_->exit(e);  // prints help or version
    return [] { return 0; };
  }
  if (const std::string empty = empty_argument(*app_); !empty.empty()) throw ConfigError(empty);
  return chosen_;
}

}  // namespace braid
