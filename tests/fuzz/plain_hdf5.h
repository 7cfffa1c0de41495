#pragma once

#include <hdf5.h>

#include <string>
#include <vector>

#include "kernels/core/file_text.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

// A shard as libhdf5 lays it out by default (superblock 0): nothing in it is under a checksum.
inline std::string plain_hdf5(const std::vector<int64_t>& tokens, const std::vector<int64_t>& offsets) {
  const std::string path = as_file("plain.h5", "");
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), root = H5Gopen2(file, "/", H5P_DEFAULT);
  const auto dataset = [&](const char* name, hid_t type, const std::vector<int64_t>& values) {
    const hsize_t size = values.size();
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    const hid_t id = H5Dcreate2(root, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dwrite(id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Dclose(id), H5Sclose(space);
  };
  dataset("tokens", H5T_STD_U16LE, tokens);
  dataset("document_offsets", H5T_STD_U64LE, offsets);
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
  text("format", "braid-tokens"), text("tokenizer", "letters"), text("tokenizer_digest", "0123abcd");
  number("format_version", 1), number("vocab_size", 10), number("end_of_document", 9);
  number("num_tokens", static_cast<int64_t>(tokens.size())), number("num_documents", static_cast<int64_t>(offsets.size()) - 1);
  H5Sclose(scalar), H5Gclose(root), H5Fclose(file);
  return file_text(path);
}

}  // namespace braid::fuzz
