#pragma once

#include <cstdint>
#include <vector>

namespace braid {

struct MixturePick {
  int64_t source;  // index into the weights
  int64_t index;   // how many samples were taken from this source before
};

// Sample `position` (0, 1, 2, …) of a stream that mixes sources by weight. Pure function; after any number of samples
// each source's count is within one per source of its share.
MixturePick mixture_pick(int64_t position, const std::vector<double>& weights);

}  // namespace braid
