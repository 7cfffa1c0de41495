#pragma once

#include <string>

#include "kernels/core/error.h"
#include "parallel/progress.h"

namespace braid {

// <run_dir>/errors.jsonl gets one line for every error of this process from now on: time, exit code and its meaning,
// rank, host, step, phase, file (where the message begins with one), tensor, expected and found (where it names
// them), message, what to do.
void set_error_folder(const std::string& run_dir);
// Nothing where no folder is set; never throws.
void record_error(ExitCode code, const std::string& message) noexcept;

// A file whose disk does not answer, as ReadWatch tells it: on stderr, whatever rank it is, and where a folder is set as
// a line in errors.jsonl, with code 0, as it does not end the run.
void tell_slow_read(const std::string& text);

// What a watchdog does with a verdict: says it, with the collectives of all ranks of the host in a file of the run
// folder, and ends the process with kCommunication, also if a disk or a terminal takes nothing any more. Those that do
// not speak just end.
[[noreturn]] void end_of_hang(const std::string& run_dir, const std::string& verdict, const ProgressBoard& board,
                              bool speaks);

// The same before the ranks have met: there are no collectives to tell of.
[[noreturn]] void end_of_start(const std::string& verdict, bool speaks);

}  // namespace braid
