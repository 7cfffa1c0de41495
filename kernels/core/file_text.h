#pragma once

#include <fstream>
#include <iterator>
#include <string>

namespace braid {

// All of a small file; empty where there is none that can be read.
inline std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace braid
