#pragma once

#include <fstream>
#include <iterator>
#include <string>

namespace braid {

// All of a small file; empty where there is none that can be read: no file, a folder, or what /proc says of a process
// that ends while it is read.
inline std::string file_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  try {
    return {std::istreambuf_iterator<char>(in), {}};
  } catch (const std::ios_base::failure&) {  // a read that failed, which iterators do not turn into the stream's state
    return {};
  }
}

// What read() returns of the file `path`, which a Loud stream reads.   Errors: Failure where the stream cannot.
template <class Failure, class Read>
auto reading(const std::string& path, Read&& read) {
  try {
    return read();
  } catch (const std::ios_base::failure&) {
    throw Failure(path + ": cannot be read");
  }
}

}  // namespace braid
