#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/communicator.h"
#include "trainer/config/config.h"

namespace braid {

// What ranks must have in common before they compute together. All functions are called by every rank, with a context
// of host memory, and their errors are on every rank: ConfigError naming the first thing that differs from rank 0's,
// both values, the ranks and their hosts.

// One thing that must be the same, in words that a message can use: {"environment variable NCCL_ALGO", "Ring"}.
struct Fact {
  std::string name, value;
};
void check_agreement(Context& ctx, Communicator& world, const std::vector<Fact>& facts);

// The program itself: build, executable, MPI library, and the environment variables that change what libraries compute
// or how they send it.
std::vector<Fact> program_facts(const std::string& mpi_library);

// Of this rank's environment, what changes how libraries compute or add: a sentence each, for the console.
std::vector<std::string> notes_of_environment();

// What `read` returns, if it is the same on every rank. An error that all ranks meet is said once.
RunConfig agree_on_config(Context& ctx, Communicator& world, const std::function<RunConfig()>& read);

// Proves that `dir` is one folder for all ranks: rank 0, which holds it, writes a token there that every rank must
// read, and the first rank of every host writes an answer that rank 0 must read.
void check_folder_is_shared(Context& ctx, Communicator& world, const std::string& dir);

// A table of hosts, their ranks and what each of those computes on (`device`), a line for each group of neighbours that
// are alike.
std::string table_of_ranks(Context& ctx, Communicator& world, const std::string& device);

}  // namespace braid
