#include "kernels/core/crc32c.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

namespace braid {
namespace {

using Crc = uint32_t (*)(const void*, size_t, uint32_t);
class Crc32c : public ::testing::TestWithParam<Crc> {};

// RFC 3720, B.4, and the check value of the catalogue of parametrised CRC algorithms.
TEST_P(Crc32c, HasThePublishedValues) {
  const Crc crc = GetParam();
  std::vector<unsigned char> bytes(32, 0);
  EXPECT_EQ(crc(bytes.data(), 32, 0), 0x8a9136aau);
  bytes.assign(32, 0xff);
  EXPECT_EQ(crc(bytes.data(), 32, 0), 0x62a8ab43u);
  std::iota(bytes.begin(), bytes.end(), 0);
  EXPECT_EQ(crc(bytes.data(), 32, 0), 0x46dd794eu);
  EXPECT_EQ(crc("123456789", 9, 0), 0xe3069283u);
  EXPECT_EQ(crc("", 0, 0), 0u);
}

TEST_P(Crc32c, GoesOnFromTheBytesBefore) {
  const Crc crc = GetParam();
  std::string text;
  for (int i = 0; i < 100; ++i) text += static_cast<char>(i * 37);
  const uint32_t whole = crc(text.data(), text.size(), 0);
  for (size_t cut = 0; cut <= text.size(); ++cut)
    EXPECT_EQ(crc(text.data() + cut, text.size() - cut, crc(text.data(), cut, 0)), whole) << cut;
}

INSTANTIATE_TEST_SUITE_P(Both, Crc32c, ::testing::Values(&crc32c, &crc32c_by_table));

}  // namespace
}  // namespace braid
