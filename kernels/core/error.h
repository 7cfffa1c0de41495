#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>

#include "kernels/core/stream.h"

namespace braid {

// What the process returns to the shell. Launch scripts act on these, so a number never changes its meaning.
enum class ExitCode : int {
  kDone = 0,
  kInternal = 1,  // a defect of ours
  kConfig = 2,    // config file or command line
  kData = 3,
  kCheckpoint = 4,
  kCommunication = 5,
  kNumerics = 6,
  kOutOfMemory = 7,
  kRunFolderInUse = 8,
  kIo = 9,
  kEnvironment = 10,         // device, launcher, library
  kStoppedOnRequest = 75,    // a complete checkpoint was written; start again with --resume
  kStoppedWithWeights = 76,  // the weights alone were written, from which no run goes on
};

// Base of everything Braid throws: one plain sentence with names and values, and the exit code it leads to.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

template <ExitCode kCode>
struct ErrorOf : Error {
  explicit ErrorOf(const std::string& message) : Error(kCode, message) {}
};

struct ShapeError : ErrorOf<ExitCode::kInternal> {
  using ErrorOf::ErrorOf;
};
struct DTypeError : ErrorOf<ExitCode::kInternal> {
  using ErrorOf::ErrorOf;
};
using ConfigError = ErrorOf<ExitCode::kConfig>;
using DataError = ErrorOf<ExitCode::kData>;
using CheckpointError = ErrorOf<ExitCode::kCheckpoint>;
using CommunicationError = ErrorOf<ExitCode::kCommunication>;
using NumericsError = ErrorOf<ExitCode::kNumerics>;
using OutOfMemoryError = ErrorOf<ExitCode::kOutOfMemory>;
using RunFolderError = ErrorOf<ExitCode::kRunFolderInUse>;
using IoError = ErrorOf<ExitCode::kIo>;
using EnvironmentError = ErrorOf<ExitCode::kEnvironment>;

// "a", 3, 'b' -> "a3b"
template <class... Parts>
std::string concat(const Parts&... parts) {
  Loud<std::ostringstream> out;
  out.precision(17);
  (out << ... << parts);
  return out.str();
}

// What the system says of an errno.
inline std::string reason(int error) { return std::generic_category().message(error); }

// For what a user, a file or a peer can get wrong; stays on in release. `E` picks the exit code:
//   check<DataError>(id < vocab, path, ": token ", id, " is outside the vocabulary of ", vocab);
template <class E, class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    throw E(concat(parts...));
}

}  // namespace braid
