#pragma once

#include <hdf5.h>

#include <cstdint>
#include <string>

namespace braid::testing {

// The attributes of a token shard, in the root of a file that a test lays out itself.
struct ShardAttributes {
  std::string tokenizer, tokenizer_digest;
  int64_t vocab_size, end_of_document, num_tokens, num_documents;

  void write(hid_t root) const {
    const hid_t scalar = H5Screate(H5S_SCALAR);
    const auto attribute = [&](const char* name, hid_t type, const void* value) {
      const hid_t id = H5Acreate2(root, name, type, scalar, H5P_DEFAULT, H5P_DEFAULT);
      H5Awrite(id, type, value);
      H5Aclose(id);
    };
    const auto number = [&](const char* name, int64_t value) { attribute(name, H5T_NATIVE_INT64, &value); };
    const auto text = [&](const char* name, const std::string& value) {
      const hid_t type = H5Tcopy(H5T_C_S1);
      H5Tset_size(type, value.size() + 1);
      attribute(name, type, value.c_str());
      H5Tclose(type);
    };
    text("format", "braid-tokens"), text("tokenizer", tokenizer), text("tokenizer_digest", tokenizer_digest);
    number("format_version", 1), number("vocab_size", vocab_size), number("end_of_document", end_of_document);
    number("num_tokens", num_tokens), number("num_documents", num_documents);
    H5Sclose(scalar);
  }
};

}  // namespace braid::testing
