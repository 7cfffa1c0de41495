#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace braid {

struct MixturePick {
  int64_t source;  // index into the weights
  int64_t index;   // how many samples were taken from this source before
};

struct MixtureInterval {
  int64_t first;                // sample of the stream where these weights begin; they end where the next ones begin
  std::vector<double> weights;  // of the sources; 0: none of its samples
};

// A stream of samples that mixes sources by weight, the weights changing at given samples. A pure function of the
// position, at the same cost everywhere; after any number of samples since a change, each source's count is within
// (1 + log2(sources)) / 2 of its share. A source goes on where it was, whatever changes.
class Mixture {
 public:
  Mixture() = default;
  explicit Mixture(std::vector<double> weights) : Mixture(std::vector<MixtureInterval>{{0, std::move(weights)}}) {}
  // The first interval begins at 0, each behind the one before.   Errors: ConfigError for weights that are no shares.
  explicit Mixture(std::vector<MixtureInterval> intervals);

  int64_t num_sources() const;
  bool uses(int64_t source) const;  // at any position
  MixturePick pick(int64_t position) const;
  // Samples of every source among the first `position` ones.
  std::vector<int64_t> taken(int64_t position) const;
  // Do both pick the same for all samples before `position`?
  bool is_same_before(const Mixture& other, int64_t position) const;

 private:
  struct Interval {
    int64_t first;
    std::vector<double> weights;
    std::vector<uint64_t> shares;  // of the left half, for every inner node of the tree in preorder
    std::vector<int64_t> taken;    // of every source before `first`
  };
  const Interval& interval_of(int64_t position) const;

  std::vector<Interval> intervals_;
};

}  // namespace braid
