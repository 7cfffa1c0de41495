#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/enum_names.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace braid {

// The command line as the commands declare it. options.cpp alone includes the library that reads it, whose templates
// cost a compiler many seconds in every file. Option and Command are handles of what CommandLine owns.

// What the chosen command does; its value is the exit code.
using Action = std::function<int()>;

inline constexpr int64_t kMostOfAnything = std::numeric_limits<int32_t>::max();  // as in configs

class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}
  Option required() const;
  Option show_default() const;                       // in the help
  Option value_name(const std::string& name) const;  // there, in place of TEXT, INT or FLOAT
  Option one_at_a_time() const;                      // of a list: every value behind an option of its own
  Option comma_separated() const;                    // of a list: also a,b,c
  Option excludes(const Option& other) const;        // one of the two
  Option one_of(const std::vector<std::string>& words) const;
  Option whole(int64_t low, int64_t high = kMostOfAnything) const;  // a plain whole number within
  Option number(double low, double high) const;                     // a number within

 private:
  friend class Command;
  CLI::Option* option_;
};

class Command {
 public:
  Command(CLI::App* app, Action* chosen) : app_(app), chosen_(chosen) {}
  Command command(const std::string& name, const std::string& what) const;  // a sub-command
  Command needs_command() const;                                            // does nothing itself
  void runs(Action action) const;                                           // where no sub-command is given

  // "name" is a positional argument, "--name" an option. What is given is written to `place`, which must outlive the
  // action. T is a std::string, an int, int64_t, uint64_t, double or std::optional<double>, or a vector of strings or
  // int64_t.
  template <class T>
  Option option(const std::string& name, T& place, const std::string& what) const;
  // Without a value: sets a bool. "--name{word}" sets a string to that word, and takes another one behind "=".
  template <class T>
  Option flag(const std::string& name, T& place, const std::string& what) const;
  // One of these values of an enum, by its name.
  template <class E>
  Option choice(const std::string& name, E& place, std::initializer_list<E> values, const std::string& what) const {
    std::vector<std::string> names;
    for (E value : values) names.push_back(name_of_enum(value));
    const auto choose = [&place, of_names = std::vector<E>(values)](size_t chosen) { place = of_names[chosen]; };
    return choice(name, names, choose, what);
  }
  Command one_option_of(const std::string& title, const std::string& what) const;  // one of those added to the result
  void excludes(const Option& option) const;                                       // beside this sub-command

 private:
  Option choice(const std::string& name, const std::vector<std::string>& names, std::function<void(size_t)> choose,
                const std::string& what) const;
  CLI::App* app_;
  Action* chosen_;
};

class CommandLine {
 public:
  CommandLine(const std::string& what, const std::string& name, const std::string& version);
  CommandLine(const CommandLine&) = delete;  // commands know its place
  ~CommandLine();
  Command root();
  // What the given command does; help and version are printed already, and nothing is left to do.   Errors:
  // ConfigError, one sentence: the first word that is no command or option in its place, and what it may have been
  // meant for; or what else is wrong.
  Action read(int argc, const char* const* argv);

 private:
  std::unique_ptr<CLI::App> app_;
  Action chosen_;
};

}  // namespace braid
