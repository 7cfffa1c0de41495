#include "kernels/core/sha256.h"

#include <openssl/evp.h>

#include <array>

#include "kernels/core/error.h"

namespace braid {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  check<EnvironmentError>(state_->context && EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1,
                          "libcrypto offers no SHA-256");
}

Sha256::~Sha256() = default;

void Sha256::update(const void* data, size_t bytes) {
  check<EnvironmentError>(EVP_DigestUpdate(state_->context, data, bytes) == 1, "libcrypto failed to update a SHA-256");
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned int size = 0;
  check<EnvironmentError>(EVP_DigestFinal_ex(state_->context, digest.data(), &size) == 1,
                          "libcrypto failed to finish a SHA-256");
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += kDigits[digest[i] >> 4];
    text += kDigits[digest[i] & 15];
  }
  return text;
}

std::string sha256(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes.data(), bytes.size());
  return digest.hex();
}

}  // namespace braid
