#include "parallel/mpi_session.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "parallel/mpi_check.h"
#include "parallel/mpi_communicator.h"

namespace braid {
namespace {

// The launcher that was closest to the process comes first: inside a Slurm allocation `mpirun -n 1` means one.
constexpr const char* kSizeVariables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"};

int number_in(const char* variable) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : 0;
}

void check_launcher_agrees() {
  int size = 0;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "size of MPI_COMM_WORLD");
  for (const char* variable : kSizeVariables) {
    if (!std::getenv(variable)) continue;
    check<EnvironmentError>(size > 1 || number_in(variable) <= 1, "MPI sees one process, but ", variable, " is ",
                            number_in(variable), ": start this program with the mpirun or srun of the MPI library it ",
                            "was built with (", MpiSession::library(), "), or unset ", variable, " to run alone");
    return;
  }
}

}  // namespace

MpiSession::MpiSession(int& argc, char**& argv) : exceptions_at_start_(std::uncaught_exceptions()) {
  int initialized = 0;
  check_mpi(MPI_Initialized(&initialized), "start of MPI");
  check<EnvironmentError>(!initialized, "MPI was already started; a process has one MpiSession in its life");
  // A rank that waits for another one gives its core to whoever can use it (by sched_yield, below), unless the user
  // says otherwise: Open MPI does so by itself only where it counts more ranks than
  // cores, threads and other programs not counted.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int threads = 0;
  check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &threads), "start of MPI");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "start of MPI");
  check<EnvironmentError>(threads >= MPI_THREAD_FUNNELED, library(), " does not support programs with threads");
  check_launcher_agrees();
}

// MPI_Finalize waits for every rank. On the way out of an error the others may be waiting for this rank in another
// call, so the end of the job is left to abort, or to the launcher, which ends it when a rank goes without finalizing.
MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() <= exceptions_at_start_) MPI_Finalize();
}

bool MpiSession::launched_by_mpi() {
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"})
    if (std::getenv(variable)) return true;
  return number_in("SLURM_NTASKS") > 1;  // Slurm sets it to 1 for programs that it did not launch, too
}

std::unique_ptr<Communicator> MpiSession::world() { return make_mpi_communicator(); }

std::string MpiSession::library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  check_mpi(MPI_Get_library_version(text, &length), "MPI library version");
  const std::string version(text, length);
  return version.substr(0, version.find_first_of(",\n"));
}

int MpiSession::local_rank() const {
  MPI_Comm host = MPI_COMM_NULL;
  int rank = 0;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host), "ranks of this host");
  check_mpi(MPI_Comm_rank(host, &rank), "ranks of this host");
  check_mpi(MPI_Comm_free(&host), "ranks of this host");
  return rank;
}

void MpiSession::abort(int exit_code) {
  std::fflush(nullptr);
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);  // no destructors: other threads may still be using what they destroy
}

}  // namespace braid

// In place of the C library's. A rank that waits polls and yields. Where others want its core, each yield lasts until
// all of them had their turn, and what the rank waits for has long been there; one that slept would be woken in front
// of them. So a yield that lasted shows that the core is wanted, and for a while waiting is sleeping. On a core of its
// own it polls, as ever.
extern "C" int sched_yield() noexcept {
  using Clock = std::chrono::steady_clock;
  using std::chrono::microseconds;
  constexpr microseconds kSomebodyRan(500), kWanted(100'000), kNap(20);
  thread_local Clock::time_point wanted_until;
  const Clock::time_point begin = Clock::now();
  if (begin < wanted_until) {
    std::this_thread::sleep_for(kNap);
    return 0;
  }
  const int result = static_cast<int>(syscall(SYS_sched_yield));
  const Clock::time_point end = Clock::now();
  if (end - begin > kSomebodyRan) wanted_until = end + kWanted;
  return result;
}
