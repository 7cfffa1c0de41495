#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "tests/messages.h"
#include "tests/testing.h"

namespace braid::testing {

// All ranks that run this test program; the local communicator if no launcher started it.
Communicator& world();

// The world ranks of a group, in the group's order.
std::vector<int32_t> members(Context& ctx, Communicator& group);

}  // namespace braid::testing
