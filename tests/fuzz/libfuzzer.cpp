// libFuzzer's entry, in builds with -DBRAID_FUZZ=ON; README.md says how. Other exceptions than ours are findings.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

// The seeds go into the first folder of the command line, where libFuzzer puts what it finds.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    const std::string folder = (*argv)[i];
    if (!std::filesystem::is_directory(folder)) continue;
    int number = 0;
    for (const std::string& seed : braid::fuzz::seeds())
      std::ofstream(folder + "/seed-" + std::to_string(number++), std::ios::binary) << seed;
    break;
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    braid::fuzz::take({reinterpret_cast<const char*>(data), size});
  } catch (const braid::Error&) {}
  return 0;
}
