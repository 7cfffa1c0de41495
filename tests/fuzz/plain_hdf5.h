#pragma once

#include <hdf5.h>

#include <string>
#include <vector>

#include "kernels/core/file_text.h"
#include "tests/data/shard_attributes.h"
#include "tests/fuzz/fuzz_target.h"

namespace braid::fuzz {

// A shard as libhdf5 lays it out by default (superblock 0): nothing in it is under a checksum.
inline std::string plain_hdf5(const std::vector<int64_t>& tokens, const std::vector<int64_t>& offsets) {
  const std::string path = as_file("plain.h5", "");
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT),
              root = H5Gopen2(file, "/", H5P_DEFAULT);
  const auto dataset = [&](const char* name, hid_t type, const std::vector<int64_t>& values) {
    const hsize_t size = values.size();
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    const hid_t id = H5Dcreate2(root, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dwrite(id, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Dclose(id), H5Sclose(space);
  };
  dataset("tokens", H5T_STD_U16LE, tokens);
  dataset("document_offsets", H5T_STD_U64LE, offsets);
  testing::ShardAttributes{"letters", "0123abcd", 10, 9, std::ssize(tokens), std::ssize(offsets) - 1}.write(root);
  H5Gclose(root), H5Fclose(file);
  return file_text(path);
}

}  // namespace braid::fuzz
