#pragma once

#include <string>
#include <vector>

#include "trainer/metrics/expert_loads.h"

namespace braid {

// A picture of numbers as PNG with a palette, (height, width) of palette indices below the number of colours; colours
// are 0xRRGGBB. Stored without compression, which small pictures do not need.
std::string encode_png(const std::vector<uint8_t>& pixels, int width, int height, const std::vector<uint32_t>& palette);

std::string base64(const std::string& bytes);

// The load of one layer's experts over time: time to the right, experts downwards, at most max_width x max_height
// pixels (neighbours in time are averaged; of neighbouring experts the one farthest from the mean is shown). A pixel is
// the load against the mean of the layer on a logarithmic scale from 1/8 to 8; experts without a token have a colour of
// their own.
struct HeatMap {
  std::string png;
  int width = 0, height = 0;
};
HeatMap load_heat_map(const std::vector<ExpertLoads>& loads, size_t layer, int max_width, int max_height);

// The scale of heat maps, for a legend: colour and what it stands for.
struct HeatColor {
  uint32_t rgb;
  std::string label;
};
std::vector<HeatColor> heat_scale();

}  // namespace braid
