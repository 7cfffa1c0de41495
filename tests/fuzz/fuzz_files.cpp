#include <cstdlib>
#include <stdexcept>

#include "kernels/core/file_text.h"
#include "kernels/core/temporary_folder.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

std::string as_file(const std::string& name, std::string_view bytes) {
  static const TemporaryFolder folder;  // until the end of the process
  const std::string path = folder / name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
  return path;
}

std::string test_data(const std::string& name) {
  const char* moved = std::getenv("BRAID_SOURCE");  // where the program runs on another machine than it was built on
  return file_text(std::string(moved ? moved : BRAID_SOURCE_FOLDER) + "/tests/data/" + name);
}

}  // namespace braid::fuzz
