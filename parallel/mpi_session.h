#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace braid {

// The MPI library for as long as the object lives; at most one per process. Only parallel/mpi_*.cpp include MPI.
// The process was started by a launcher (mpirun, srun) if `launched_by_mpi()`; otherwise run on a local communicator.
// Throws EnvironmentError if MPI sees one rank although the launcher's variables (OMPI_COMM_WORLD_SIZE, PMI_SIZE,
// SLURM_NTASKS; the first that is set counts) say there are more: the program was built against another MPI than the
// launcher's, or started without it.
// Communicators end before the session. A session that ends normally waits for every rank to do so; one that ends
// because of an exception waits for nobody, so catch outside of it and call abort.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  static bool launched_by_mpi();

  std::unique_ptr<Communicator> world();
  static std::string library();  // "Open MPI v4.1.4"
  // This process among those of its host.
  int local_rank() const;

  // Ends every rank of the job with this exit code; used by main after it has printed what was wrong.
  [[noreturn]] static void abort(int exit_code);

 private:
  int exceptions_at_start_;
};

}  // namespace braid
