#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace braid::fuzz {

// A parser of bytes that others wrote; each file here but the drivers is one. A driver calls take() with millions of
// inputs: it must return, or throw a braid::Error. std::logic_error stands for a wrong result.
std::vector<std::string> seeds();  // inputs to begin with, that are taken
void take(std::string_view bytes);

// A file with these bytes in a folder of the process, overwritten by the next of this name.   Returns its path.
std::string as_file(const std::string& name, std::string_view bytes);

// Of a file of the tests' own: tests/data/<name>.
std::string test_data(const std::string& name);

}  // namespace braid::fuzz
