#include "trainer/report/heat_map.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

namespace braid {
namespace {

// Checksums as zlib computes them.
TEST(Png, OfOneBlackPixelHasTheKnownBytes) {
  const std::string png = encode_png({0}, 1, 1, {0x000000});
  const std::string expected(
      "\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x03\0\0\0\x28\xcb\x34\xbb"
      "\0\0\0\3PLTE\0\0\0\xa7\x7a\x3d\xda"
      "\0\0\0\rIDAT\x78\x01\x01\x02\0\xfd\xff\0\0\0\x02\0\x01\x7e\x05\x0d\xd2"
      "\0\0\0\0IEND\xae\x42\x60\x82",
      85);
  EXPECT_EQ(png, expected);
}

TEST(Base64, HasTheValuesOfRfc4648) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
}

// The pixels of a picture that is small enough for one stored block.
std::string pixels_of(const HeatMap& map) {
  const size_t at = map.png.find("IDAT") + 4 + 2 + 5;
  std::string pixels;
  for (int y = 0; y < map.height; ++y)
    pixels += map.png.substr(at + size_t(y) * size_t(map.width + 1) + 1, size_t(map.width));
  return pixels;
}

TEST(HeatMap, TellsEmptyEvenAndFullExpertsApart) {
  const HeatMap map =
      load_heat_map({{1, {"layer_00"}, {{0, 10, 30, 0}}}, {2, {"layer_00"}, {{10, 10, 10, 10}}}}, 0, 100, 100);
  ASSERT_EQ(map.width, 2);
  ASSERT_EQ(map.height, 4);
  const std::string p = pixels_of(map);
  EXPECT_EQ(p[0], 0);     // expert 0 at time 0 has no token
  EXPECT_EQ(p[6], 0);     // expert 3
  EXPECT_GT(p[4], p[2]);  // the fuller, the darker
  EXPECT_EQ((std::set<char>{p[1], p[3], p[5], p[7]}.size()), 1u);
  EXPECT_EQ(p[2], p[1]);  // 10 of 40 over four experts is the mean
}

TEST(HeatMap, ShowsTheExtremeOfNeighboursThatShareAPixel) {
  std::vector<int64_t> counts(64, 10);
  counts[17] = 0;
  const HeatMap map = load_heat_map({{1, {"layer_00"}, {counts}}}, 0, 10, 8);
  ASSERT_EQ(map.height, 8);
  const std::string p = pixels_of(map);
  EXPECT_EQ(p[2], 0);  // 16 to 23
  EXPECT_NE(p[1], 0);
}

}  // namespace
}  // namespace braid
