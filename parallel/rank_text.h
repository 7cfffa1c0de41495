#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace braid {

// Every rank's text, in rank order, on every rank.
std::vector<std::string> gather_text(Context& ctx, Communicator& world, const std::string& text);

// Runs `work` on every rank and returns what each of them returned. If it throws anywhere, every rank throws the error
// of the lowest such rank once all are done, so none is left waiting for another: the same type for CheckpointError and
// IoError, an Error with the same exit code otherwise.
std::vector<std::string> all_or_none(Context& ctx, Communicator& world, const std::function<std::string()>& work);

}  // namespace braid
