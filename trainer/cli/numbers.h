#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/core/error.h"

namespace braid {

// Numbers on a command line, for Option::check. By itself CLI11 reads 010 as eight, -1 as 2^64 - 1 where no number may be below
// 0, what is too large as the largest there is, and takes nan for a number in any range.

inline constexpr int64_t kMostOfAnything = std::numeric_limits<int32_t>::max();  // as in configs

inline CLI::Validator whole_number(int64_t low, int64_t high = kMostOfAnything) {
  const std::string range = concat(low, " to ", high);
  const auto check = [=](const std::string& text) {
    int64_t value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    const bool is_plain = text == std::to_string(value);
    return is_plain && low <= value && value <= high ? std::string() : concat(text, " is no whole number from ", range);
  };
  return CLI::Validator(check, range);
}

inline CLI::Validator number(double low, double high) {
  const std::string range = concat(low, " to ", high);
  const auto check = [=](const std::string& text) {
    double value = std::numeric_limits<double>::quiet_NaN();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool is_plain = error == std::errc() && end == text.data() + text.size();
    return is_plain && low <= value && value <= high ? std::string() : concat(text, " is no number from ", range);
  };
  return CLI::Validator(check, range);
}

}  // namespace braid
