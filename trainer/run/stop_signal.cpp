#include "trainer/run/stop_signal.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <system_error>
#include <utility>

#include "kernels/core/error.h"

namespace braid {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void remember(int signal) {
  if (signal == SIGINT && received_signal == SIGINT) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
  received_signal = signal;
}

bool speaks_of_stop = false, has_launcher = false;

// SIGTERM from the launcher is how it ends the others after one has failed, which has said why.
void end_at_once(int signal, siginfo_t* info, void*) {
  constexpr char kSentence[] = "braid: stopped on request while it started; nothing was begun, nothing is lost\n";
  const bool is_clean_up = signal == SIGTERM && has_launcher && info->si_pid == getppid();
  if (speaks_of_stop && !is_clean_up) {
    [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, kSentence, sizeof kSentence - 1);
  }
  _exit(static_cast<int>(ExitCode::kStoppedOnRequest));
}

void handle_stop_signals(const struct sigaction& action) {
  for (int signal : {SIGTERM, SIGUSR1, SIGINT}) sigaction(signal, &action, nullptr);
}

const auto start_of_process = std::chrono::steady_clock::now();

// What one rank tells the others. Above them: numbers of signals.
constexpr int64_t kGoOn = 0, kTimeLimit = 1, kFile = 2, kSignals = 1000;

std::string text_of(int64_t reason) {
  switch (reason) {
    case kGoOn: return "";
    case kTimeLimit: return "run.time_limit";
    case kFile: return "the file STOP in the run folder";
    case kSignals + SIGTERM: return "SIGTERM";
    case kSignals + SIGINT: return "SIGINT";
    case kSignals + SIGUSR1: return "SIGUSR1";
    default: return concat("signal ", reason - kSignals);
  }
}

}  // namespace

void end_on_stop_signal(bool speaks) {
  speaks_of_stop = speaks;
  has_launcher = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  struct sigaction action = {};
  action.sa_sigaction = end_at_once;
  action.sa_flags = SA_SIGINFO;
  handle_stop_signals(action);
}

void remember_stop_signal() {
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;  // file writes go on
  handle_stop_signals(action);
}

int received_stop_signal() { return received_signal; }

StopRequests::StopRequests(std::string run_dir, double time_limit_s, bool is_first_rank)
    : path_(std::move(run_dir) + "/STOP"), time_limit_s_(time_limit_s), is_first_rank_(is_first_rank) {
  remember_stop_signal();
}

double StopRequests::process_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_of_process).count();
}

int64_t StopRequests::own_reason(double seconds_to_leave) {
  if (const int signal = received_stop_signal()) return kSignals + signal;
  if (!is_first_rank_) return kGoOn;
  constexpr auto kPause = std::chrono::milliseconds(250);  // file systems of many hosts do not like to be asked often
  const auto now = std::chrono::steady_clock::now();
  if (now - looked_ >= kPause) {
    looked_ = now;
    std::error_code ignored;
    if (std::filesystem::exists(path_, ignored)) return kFile;
  }
  return time_limit_s_ > 0 && process_seconds() + seconds_to_leave >= time_limit_s_ ? kTimeLimit : kGoOn;
}

const std::string& StopRequests::agreed(Context& ctx, Communicator& world, double seconds_to_leave) {
  if (!reason_.empty()) return reason_;
  int64_t reason = own_reason(seconds_to_leave);
  world.all_reduce(ctx, Tensor::of(&reason, {1}), ReduceOp::kMax);
  return reason_ = text_of(reason);
}

void StopRequests::forget_file() const {
  std::error_code ignored;
  if (is_first_rank_) std::filesystem::remove(path_, ignored);
}

}  // namespace braid
