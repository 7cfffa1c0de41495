#include "trainer/run/stop_signal.h"

#include <csignal>
#include <initializer_list>

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

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;  // file writes go on
  sigemptyset(&action.sa_mask);
  for (int signal : {SIGTERM, SIGUSR1, SIGINT}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

StopSignal::~StopSignal() {
  for (int signal : {SIGTERM, SIGUSR1, SIGINT, SIGPIPE}) std::signal(signal, SIG_DFL);
}

int StopSignal::received() { return received_signal; }

}  // namespace braid
