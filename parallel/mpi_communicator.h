#pragma once

#include <cstdint>
#include <memory>

#include "parallel/communicator.h"

namespace braid {

// MPI counts are int, so no call moves more bytes than this; larger tensors go in pieces.
inline constexpr int64_t kMpiPieceBytes = int64_t{1} << 30;

// All ranks of MPI_COMM_WORLD, over host memory. MPI must be initialised (MpiSession::world is the usual way).
// A test passes small pieces to see what a tensor of more than 2^31 elements would see.
std::unique_ptr<Communicator> make_mpi_communicator(int64_t piece_bytes = kMpiPieceBytes);

}  // namespace braid
