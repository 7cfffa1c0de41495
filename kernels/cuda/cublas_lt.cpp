#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <string>

#include "kernels/core/error.h"

namespace braid::cuda {
namespace {

// By its name where the system finds it, or where it was when Braid was built.
void* open_cublas_lt() {
  const std::string name = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library) return library;
  const std::string reason = dlerror();
  library = dlopen(BRAID_CUBLAS_LT_FILE, RTLD_NOW | RTLD_LOCAL);
  check<EnvironmentError>(library != nullptr, "products on a GPU need ", name, ", which cannot be loaded: ", reason);
  return library;
}

}  // namespace

void* cublas_lt_address(const char* function) {
  static void* const library = open_cublas_lt();
  void* const address = dlsym(library, function);
  check<EnvironmentError>(address != nullptr, "libcublasLt has no ", function, ": ", dlerror());
  return address;
}

}  // namespace braid::cuda
