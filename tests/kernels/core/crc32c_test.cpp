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

TEST(Crc32cOfBoth, IsThatOfThePiecesPutTogether) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * i * 37 >> 3);
  const uint32_t whole = crc32c(text.data(), text.size());
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const size_t rest = text.size() - cut;
    ASSERT_EQ(crc32c_of_both(crc32c(text.data(), cut), crc32c(text.data() + cut, rest), rest), whole) << cut;
  }
  // 2^34 zero bytes behind a letter, at once and as two halves.
  const std::string zeros(1 << 10, '\0');
  uint32_t half = crc32c(zeros.data(), zeros.size());
  for (int i = 10; i < 33; ++i) half = crc32c_of_both(half, half, uint64_t{1} << i);
  const uint32_t letter = crc32c("a", 1), all = crc32c_of_both(half, half, uint64_t{1} << 33);
  EXPECT_EQ(crc32c_of_both(letter, all, uint64_t{1} << 34),
            crc32c_of_both(crc32c_of_both(letter, half, uint64_t{1} << 33), half, uint64_t{1} << 33));
}

INSTANTIATE_TEST_SUITE_P(Both, Crc32c, ::testing::Values(&crc32c, &crc32c_by_table));

}  // namespace
}  // namespace braid
