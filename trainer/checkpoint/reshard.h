#pragma once

#include <string>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

// Writes the state of a checkpoint into the new folder `to`, spread over files of equal size as if `ranks` ranks had
// saved it; a block of data is in memory at a time, checked against its digest.
// Errors: CheckpointError; IoError if the folder is there already and not empty.
void reshard_checkpoint(const CheckpointReader& from, const std::string& to, int64_t ranks);

}  // namespace braid
