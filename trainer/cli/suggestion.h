#pragma once

#include <string>

namespace CLI {
class App;
}

namespace braid {

// What was mistyped on a command line that does not parse, as a sentence: the first word that is no sub-command or no
// option in its place, and what it may have been meant for. Empty if every word is known there.
std::string unknown_word(const CLI::App& app, int argc, const char* const* argv);

}  // namespace braid
