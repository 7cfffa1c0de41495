#pragma once

#include <ios>
#include <utility>

namespace braid {

// A stream of the standard library that throws what goes wrong inside it: memory that was refused, or a read that
// failed (std::ios_base::failure). A plain one keeps it to itself and goes on as if its text ended there.
template <class Stream>
struct Loud : Stream {
  template <class... Arguments>
  explicit Loud(Arguments&&... arguments) : Stream(std::forward<Arguments>(arguments)...) {
    this->exceptions(std::ios_base::badbit);
  }
};

}  // namespace braid
