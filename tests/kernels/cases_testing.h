#pragma once

#include <gtest/gtest.h>

#include "kernels/cases/operator_case.h"

namespace braid::testing {

// Runs every TEST_P of a suite, whose parameter is a const OperatorCase*, with every operator of the table.
inline std::vector<const cases::OperatorCase*> every_case() {
  std::vector<const cases::OperatorCase*> all;
  for (const cases::OperatorCase& c : cases::operator_cases()) all.push_back(&c);
  return all;
}
#define BRAID_FOR_EACH_CASE(Suite)                                                                \
  INSTANTIATE_TEST_SUITE_P(Operators, Suite, ::testing::ValuesIn(::braid::testing::every_case()), \
                           [](const auto& info) { return std::string(info.param->name); })

// The hard variants whose tensors take no more than this in fp32; BRAID_MOST_CASE_BYTES lowers it, for tools that look
// at every access.
cases::Variants hard_variants(const cases::OperatorCase& c, int64_t most_bytes);

// Declares the variant on both sides and expects every step to agree, and what must have the same bits to have them.
void expect_agreement(const cases::Variant& variant, cases::Trial& reference, cases::Trial& tried,
                      const cases::Allowed& allowed);

// What a step takes of scratch when it is only counted is what it then takes, and counting leaves every tensor alone.
// `fresh` makes a context of the trial's device.
void expect_counted_scratch(cases::Trial& trial, const std::function<Context()>& fresh);

}  // namespace braid::testing
