// libFuzzer's entry, in builds with -DBRAID_SANITIZE=fuzzer-no-link,…; README.md says how. Other exceptions than ours are findings.
#include <cstddef>
#include <cstdint>

#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    braid::fuzz::take({reinterpret_cast<const char*>(data), size});
  } catch (const braid::Error&) {
  }
  return 0;
}
