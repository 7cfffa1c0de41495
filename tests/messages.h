#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/core/error.h"

namespace braid::testing {

// The message of the E that body throws, "" if it throws nothing; any other exception passes through.
template <class E = Error, class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const E& e) {
    return e.what();
  }
  return "";
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "no \"" << part << "\" in: " << text;
}

}  // namespace braid::testing
