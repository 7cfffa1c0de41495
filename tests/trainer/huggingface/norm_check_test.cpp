#include "trainer/huggingface/norm_check.h"

#include <cmath>

#include "tests/file_testing.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

using Weights = std::vector<double>;

Weights around(double mean, double stddev, int64_t count = 2000) {
  const Tensor t = random_f64({count}, 3, stddev, mean);
  return {t.data<double>(), t.data<double>() + count};
}
Weights joined(Weights a, const Weights& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::string refusal(const Weights& zero_centred, const Weights& gated) {
  return message_of<CheckpointError>([&] { check_norm_centring("dir", zero_centred, gated); });
}

TEST(NormCheck, AcceptsInitialAndTrainedNorms) {
  const Weights good_gated = around(1, 0.2), good = around(0, 0.2);
  const Weights zero_centred[] = {
      {},
      Weights(100, 0.0),
      around(0, 0.02),
      around(0, 0.3),
      around(-0.5, 0.2),
      around(0.4, 0.3),
      joined(around(0.1, 0.3), around(1.5, 0.5, 500)),  // norms of queries and keys, or the last one, well above
      joined(around(1, 0.1), around(-0.7, 0.1, 500)),   // channels that are damped: no plain norm has them below 0
      around(2.5, 0.5)};
  for (const Weights& weights : zero_centred) EXPECT_EQ(refusal(weights, good_gated), "");
  const Weights gated[] = {{}, Weights(100, 1.0), around(1, 0.3), around(0.4, 0.1), around(0.2, 0.05), around(3, 1)};
  for (const Weights& weights : gated) EXPECT_EQ(refusal(good, weights), "");
}

TEST(NormCheck, RefusesTheOtherConvention) {
  const Weights good_gated = around(1, 0.2), good = around(0, 0.2);
  EXPECT_EQ(refusal(Weights(100, 1.0), good_gated),
            "dir: the weights of all zero-centred norms have the median 1, and 0 % of them are 0 or less: they are "
            "stored as 1 + w, so 1 must be subtracted from each");
  EXPECT_EQ(refusal(good, Weights(100, 0.0)),
            "dir: the weights of all linear_attn.norm have the median 0, and 100 % of them are 0 or less: they are "
            "stored around zero, but this norm is a plain scale, so 1 must be added to each");
  for (double stddev : {0.02, 0.2, 0.4}) {
    expect_contains(refusal(around(1, stddev), good_gated), "1 must be subtracted");
    expect_contains(refusal(joined(around(1, stddev), around(2, 0.3, 300)), good_gated), "1 must be subtracted");
    expect_contains(refusal(good, around(0, stddev)), "1 must be added");
    expect_contains(refusal(good, around(-0.2, stddev)), "1 must be added");
  }
}

TEST(NormCheck, NumbersThatAreNotFiniteDoNotCount) {
  Weights weights(100, 1.0);
  weights.insert(weights.begin(), 300, std::nan(""));
  weights.insert(weights.begin(), 300, -INFINITY);
  expect_contains(refusal(weights, {}), "have the median 1, and 0 % of them");
  EXPECT_EQ(refusal(Weights(10, std::nan("")), Weights(10, std::nan(""))), "");
}

}  // namespace
}  // namespace braid
