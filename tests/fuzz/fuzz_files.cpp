#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "kernels/core/file_text.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

namespace fs = std::filesystem;

namespace {

// Removed at the end of the process.
struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / "braid-fuzz-XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
    path = name;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  fs::path path;
};

}  // namespace

std::string as_file(const std::string& name, std::string_view bytes) {
  static const Folder folder;
  const std::string path = (folder.path / name).string();
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
  return path;
}

std::string test_data(const std::string& name) { return file_text(BRAID_SOURCE_FOLDER "/tests/data/" + name); }

}  // namespace braid::fuzz
