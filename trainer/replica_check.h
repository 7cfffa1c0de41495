#pragma once

#include "model/model.h"
#include "parallel/process_mesh.h"

namespace braid {

// Holds the copies of all weights against each other, bit for bit: dense ones over the world, experts over the ranks
// that hold the same. Called by every rank.   Errors: NumericsError, on every rank, naming the first tensor that
// differs and the ranks that differ from the first of their group.
void check_replicas(Context& ctx, const ProcessMesh& mesh, const ModelConfig& config, ModelParams& weights);

}  // namespace braid
