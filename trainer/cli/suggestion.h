#pragma once

#include <string>

namespace CLI {
class App;
}

namespace braid {

// What is wrong with a command line that does not parse, as a sentence: the first word that is no sub-command or no option in
// its place, and what it may have been meant for; else `reason`, the parser's own words, with the command that they are about.
std::string command_line_error(const CLI::App& app, int argc, const char* const* argv, const std::string& reason);

// "" where no argument of the command is empty, as those of shell variables are that are not set; else what to say of it.
std::string empty_argument(const CLI::App& app);

}  // namespace braid
