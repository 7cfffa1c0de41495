#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "parallel/communicator.h"

namespace braid {

// Beside its type, what an error is that every rank throws at the same place: it is enough that rank 0 says it.
struct OnEveryRank {
  virtual ~OnEveryRank() = default;
};
template <class E>
[[noreturn]] void throw_on_every_rank(const E& error) {
  struct Thrown : E, OnEveryRank {
    explicit Thrown(const E& e) : E(e) {}
  };
  throw Thrown(error);
}

// Every rank's text, in rank order, on every rank.
std::vector<std::string> gather_text(Context& ctx, Communicator& world, const std::string& text);

// Rank 0's text on every rank.
std::string broadcast_text(Context& ctx, Communicator& world, const std::string& text);

// Runs `work` on every rank and returns what each of them returned. If it throws anywhere, every rank throws the error
// of the lowest such rank once all are done, so none is left waiting for another: the same type for CheckpointError and
// IoError, an Error with the same exit code otherwise. The message says on which ranks it is so, unless on all.
std::vector<std::string> all_or_none(Context& ctx, Communicator& world, const std::function<std::string()>& work);

// Rank 0 decides: `work` runs there alone, and every rank returns what it returned or throws what it threw.
std::string from_first_rank(Context& ctx, Communicator& world, const std::function<std::string()>& work);

// "rank 3", "ranks 0, 2-5": ascending ranks in words.
std::string rank_list(const std::vector<int>& ranks);

}  // namespace braid
