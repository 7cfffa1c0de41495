#pragma once

// MPI's header comes from here only: without these it pulls in the C++ bindings that MPI removed, and needs their
// library.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <string>

#include "kernels/core/error.h"

namespace braid {

// The one checker of MPI's status codes:  check_mpi(MPI_Barrier(comm), "barrier");
// Needs MPI_ERRORS_RETURN on the communicator. After an error MPI promises nothing: no further call but MPI_Abort.
template <class... Parts>
void check_mpi(int status, const Parts&... operation) {
  if (status == MPI_SUCCESS) [[likely]]
    return;
  char text[MPI_MAX_ERROR_STRING] = "unknown MPI error";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw CommunicationError(concat(operation..., ": ", text));
}

}  // namespace braid
