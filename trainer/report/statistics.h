#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/report/run_data.h"

namespace braid {

// A mean and what is known about it.
struct Estimate {
  double mean = 0;
  double standard_deviation = 0;  // of the values; NaN for one
  double half_width = 0;          // of the 95 % interval of the mean, by Student's t; NaN for one value
  int64_t count = 0;
};
Estimate estimate(const std::vector<double>& values);

// The upper one of the two in the middle; NaN for none.
double median(std::vector<double> values);

// How far the training loss of `other` lies above that of `base`, over the last quarter of the steps that both have.
// Runs that saw the same rows in the same order are compared step by step, so what a batch makes hard for both cancels;
// as neighbouring steps are alike, the means of kBlocks blocks of steps are the values of the estimate.
struct LossDifference {
  static constexpr int64_t kBlocks = 8;
  bool same_data = false;  // else the estimate has no interval
  int64_t first_step = 0, last_step = 0;
  Estimate difference;  // count 0 if the runs have no step in common
};
LossDifference loss_difference(const RunData& base, const RunData& other);

// Do two runs draw the same rows in the same order? By the digests that they stored.
bool same_data_order(const RunData& a, const RunData& b);

// "1.2345 ± 0.0012", "1.2345" where the width is not known
std::string to_text(const Estimate& estimate, int decimals);

}  // namespace braid
