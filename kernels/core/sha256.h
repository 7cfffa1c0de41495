#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace braid {

// SHA-256 in lower-case hex.
std::string sha256(std::string_view bytes);

// The same, fed piece by piece.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(const void* data, size_t bytes);
  std::string hex();  // ends the digest

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace braid
