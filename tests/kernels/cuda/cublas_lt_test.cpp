#include "kernels/cuda/cublas_lt.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include "tests/messages.h"

namespace braid::cuda {
namespace {

// Needs no GPU. One test, for what it looks at happens once in a program.
TEST(CublasLt, IsLoadedByTheFirstCall) {
  const std::string library = concat("libcublasLt.so.", CUBLAS_VER_MAJOR);
  EXPECT_EQ(dlopen(library.c_str(), RTLD_NOLOAD | RTLD_NOW), nullptr) << "it is linked, which costs every start 80 ms";
  EXPECT_EQ(cublasLtGetVersion() / 10000, static_cast<size_t>(CUBLAS_VER_MAJOR));
  EXPECT_NE(dlopen(library.c_str(), RTLD_NOLOAD | RTLD_NOW), nullptr);
  EXPECT_STREQ(cublasLtGetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), "the requested functionality is not supported");
  const std::string message = testing::message_of<EnvironmentError>([] { cublas_lt_address("cublasLtMatmuls"); });
  EXPECT_TRUE(message.starts_with("libcublasLt has no cublasLtMatmuls: ")) << message;
}

}  // namespace
}  // namespace braid::cuda
