#pragma once

#include <string>

#include "kernels/core/context.h"

namespace braid {

// Adds the large products that `ctx` has computed to the table of algorithms in `path`, which may be new: see
// kernels/matmul_algorithms.h. Products that it holds already are not measured again. A line to stderr for each other.
// Errors: ConfigError if `path` holds something else; IoError; those of tune_matmul.
void tune_products(Context& ctx, const std::string& path);

}  // namespace braid
