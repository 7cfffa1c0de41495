#include "trainer/report/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace braid {
namespace {

// Colour 0: no token at all. Then rising load, from light to dark, so that it is read without colour too.
constexpr std::array<uint32_t, 14> kPalette = {0xff5a00, 0xfdfdf4, 0xf1f3dd, 0xe0ecc8, 0xc6e0b8, 0xa5d1b0, 0x80bfae,
                                               0x5aabb0, 0x3d93ae, 0x2f79a6, 0x2b5f99, 0x294685, 0x242f68, 0x190f3c};
constexpr int kLevels = int(kPalette.size()) - 1;
constexpr double kWidestLog2 = 3;  // 1/8 to 8

uint8_t color_of(double load_over_mean) {
  if (!(load_over_mean > 0)) return 0;
  const double share = (std::log2(load_over_mean) + kWidestLog2) / (2 * kWidestLog2);
  return static_cast<uint8_t>(1 + std::clamp<int64_t>(std::llround(share * (kLevels - 1)), 0, kLevels - 1));
}

void append_big_endian(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xff);
}

uint32_t crc32(const std::string& bytes) {  // of PNG: ISO 3309
  uint32_t crc = ~0u;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

uint32_t adler32(const std::string& bytes) {
  uint32_t a = 1, b = 0;
  for (const char c : bytes) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

void append_chunk(std::string& out, const std::string& type, const std::string& data) {
  append_big_endian(out, static_cast<uint32_t>(data.size()));
  out += type + data;
  append_big_endian(out, crc32(type + data));
}

// A zlib stream of blocks that are stored as they are.
std::string zlib_stored(const std::string& bytes) {
  std::string out = "\x78\x01";
  constexpr size_t kBlock = 65535;
  for (size_t begin = 0; begin == 0 || begin < bytes.size(); begin += kBlock) {
    const size_t size = std::min(kBlock, bytes.size() - begin);
    out += begin + size == bytes.size() ? '\1' : '\0';
    for (const size_t word : {size, ~size}) {
      out += static_cast<char>(word & 0xff);
      out += static_cast<char>(word >> 8 & 0xff);
    }
    out.append(bytes, begin, size);
  }
  append_big_endian(out, adler32(bytes));
  return out;
}

}  // namespace

std::string encode_png(const std::vector<uint8_t>& pixels, int width, int height,
                       const std::vector<uint32_t>& palette) {
  std::string out("\x89PNG\r\n\x1a\n", 8), header, colors, rows;
  append_big_endian(header, static_cast<uint32_t>(width));
  append_big_endian(header, static_cast<uint32_t>(height));
  header += std::string("\x08\x03\x00\x00\x00", 5);  // 8 bits, palette, no interlace
  for (const uint32_t rgb : palette)
    for (int shift = 16; shift >= 0; shift -= 8) colors += static_cast<char>(rgb >> shift & 0xff);
  for (int y = 0; y < height; ++y) {
    rows += '\0';  // no filter
    rows.append(reinterpret_cast<const char*>(pixels.data()) + size_t(y) * size_t(width), size_t(width));
  }
  append_chunk(out, "IHDR", header);
  append_chunk(out, "PLTE", colors);
  append_chunk(out, "IDAT", zlib_stored(rows));
  append_chunk(out, "IEND", "");
  return out;
}

std::string base64(const std::string& bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t three = 0;
    for (size_t j = 0; j < 3; ++j)
      three = three << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? kDigits[three >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

HeatMap load_heat_map(const std::vector<ExpertLoads>& loads, size_t layer, int max_width, int max_height) {
  const auto times = static_cast<int64_t>(loads.size());
  const int64_t experts = times > 0 ? static_cast<int64_t>(loads.front().counts.at(layer).size()) : 0;
  if (times == 0 || experts == 0) return {};
  HeatMap map;
  map.width = static_cast<int>(std::min<int64_t>(times, max_width));
  map.height = static_cast<int>(std::min<int64_t>(experts, max_height));
  std::vector<uint8_t> pixels(size_t(map.width) * size_t(map.height));
  std::vector<double> share(experts);
  for (int x = 0; x < map.width; ++x) {
    // Every time has the same weight, whatever its number of tokens.
    std::fill(share.begin(), share.end(), 0.0);
    const int64_t begin = x * times / map.width, end = (x + 1) * times / map.width;
    for (int64_t t = begin; t < end; ++t) {
      const std::vector<int64_t>& counts = loads[t].counts.at(layer);
      double total = 0;
      for (const int64_t count : counts) total += double(count);
      for (int64_t e = 0; e < experts && total > 0; ++e)
        share[e] += double(counts[e]) * double(experts) / total / double(end - begin);
    }
    for (int y = 0; y < map.height; ++y) {
      double shown = 1;
      double farthest = -1;
      for (int64_t e = y * experts / map.height; e < (y + 1) * experts / map.height; ++e) {
        const double distance = share[e] > 0 ? std::abs(std::log2(share[e])) : 1e9;
        if (distance > farthest) farthest = distance, shown = share[e];
      }
      pixels[size_t(y) * size_t(map.width) + size_t(x)] = color_of(shown);
    }
  }
  map.png = encode_png(pixels, map.width, map.height, {kPalette.begin(), kPalette.end()});
  return map;
}

std::vector<HeatColor> heat_scale() {
  return {{kPalette[0], "no token"},      {kPalette[color_of(0.125)], "⅛ of the mean"},
          {kPalette[color_of(0.5)], "½"}, {kPalette[color_of(1)], "the mean"},
          {kPalette[color_of(2)], "2×"},  {kPalette[color_of(8)], "8× and more"}};
}

}  // namespace braid
