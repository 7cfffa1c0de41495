#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>

#include "kernels/build_config.h"
#include "kernels/build_info.h"
#include "kernels/core/thrown.h"
#include "parallel/progress.h"
#include "parallel/rank_text.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/session.h"
#include "trainer/run/error_record.h"
#include "trainer/run/read_watch.h"

namespace {

// One plain sentence, and the end of the whole job. The other ranks usually fail for the same reason: they give rank 0
// a moment to say it once, and longer if they know that it will. Where ranks fail to reach each other each has its own
// side to tell, and the one at fault may not be the first.
[[noreturn]] void fail(int exit_code, const std::string& message, bool on_every_rank = false) {
  const int rank = braid::world_rank();
  const bool has_a_side = exit_code == static_cast<int>(braid::ExitCode::kCommunication) && !on_every_rank;
  if (rank != 0) std::this_thread::sleep_for(std::chrono::seconds(on_every_rank ? 10 : 1));
  if (rank == 0 || !on_every_rank) braid::record_error(static_cast<braid::ExitCode>(exit_code), message);
  std::fflush(stdout);
  const std::string speaker = rank != 0 || has_a_side ? braid::concat("rank ", rank, ": ") : "";
  std::fprintf(stderr, "braid: %s%s\n", speaker.c_str(), message.c_str());
  std::fflush(stderr);
  if (has_a_side) std::this_thread::sleep_for(std::chrono::seconds(2));
  braid::end_process(exit_code);
}

// A file that is opened where a standard stream was closed would be written what the program says. Writing to a closed
// output stays the error that it is.
void keep_places_of_closed_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(stream, F_GETFD) < 0) open("/dev/null", stream == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

// Of standard output, where that is a pipe.
bool reader_is_gone() {
  pollfd end = {STDOUT_FILENO, POLLOUT, 0};
  return poll(&end, 1, 0) > 0 && (end.revents & (POLLERR | POLLHUP)) != 0;
}

// Ends the job as the exception in flight says.
[[noreturn]] void fail_as_thrown() {
  try {
    throw;
  } catch (const std::exception& e) {
    const braid::Error error = braid::as_error(e);
    fail(static_cast<int>(error.code()), error.what(), dynamic_cast<const braid::OnEveryRank*>(&e) != nullptr);
  }
}

thread_local bool memory_was_refused = false;

// The first line is what scripts take.
std::string version() {
  const std::string backends = braid::kWithCuda
                                   ? braid::concat("with CUDA for architectures ", braid::kCudaArchitectures,
                                                   braid::kWithCudnn ? " and with cuDNN" : ", without cuDNN")
                                   : "without CUDA: CPU only";
  return braid::concat("braid ", braid::kBuildId, '\n', backends);
}

}  // namespace

int main(int argc, char** argv) {
  // An exception cannot leave a parallel loop, or what the C++ library lets none through, which may not even say that
  // there was one. It ends the program there, but as here.
  std::set_new_handler([] {
    memory_was_refused = true;
    throw std::bad_alloc();
  });
  std::set_terminate([] {
    if (std::current_exception()) fail_as_thrown();
    if (memory_was_refused) fail(static_cast<int>(braid::ExitCode::kOutOfMemory), "out of memory");
    std::abort();
  });
  keep_places_of_closed_streams();
  braid::CommandLine line("Braid: pretraining of Qwen3-Next-style models", "braid", version());
  for (const auto add : braid::kAddCommands) add(line.root());
  braid::Action action;
  try {
    action = line.read(argc, argv);
  } catch (const braid::ConfigError& e) {
    if (braid::world_rank() == 0) std::fprintf(stderr, "braid: %s\n", e.what());
    return static_cast<int>(e.code());
  }
  // A reader that goes and a file that may not grow are errors of the call that meets them.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  braid::own_progress().rank = braid::world_rank();  // by which it is told of before the ranks have met
  try {
    const braid::ReadWatch read_watch(braid::tell_slow_read);
    const int exit_code = action();
    if ((std::fflush(stdout) != 0 || std::ferror(stdout)) && !reader_is_gone())
      throw braid::IoError("standard output cannot be written");
    return exit_code;
  } catch (...) {
    fail_as_thrown();
  }
}
