#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"

namespace braid {

// The part of HDF5 that token shards use, read without libhdf5: a root group with a few attributes and contiguous,
// unfiltered datasets. Every address, length and count is checked against the file before it is followed, and the
// checksums of superblock 2 and 3 are verified, so no file can do more than be refused.
// Source: HDF5 File Format Specification, version 3.0.   Errors: DataError with path, object, expected and found.

// What HDF5 allows and shards are not: `braid data convert` makes shards of it.
struct OtherHdf5 : DataError {
  using DataError::DataError;
};

struct Hdf5Type {
  int kind = 0;  // class number of the specification
  int64_t bytes = 0;
  bool is_signed = false, is_big_endian = false;
  int64_t first_bit = 0, num_bits = 0;  // of an integer: which of its bits count

  bool is_integer() const;  // all bits count
  bool is_fixed_string() const;
  std::string description() const;
};

struct Hdf5Attribute {
  std::string name;
  Hdf5Type type;
  bool is_scalar = false;
  std::string value;  // its bytes, if scalar
};

struct Hdf5Link {
  std::string name;
  std::string kind;      // "object", "soft link", "external link", …
  uint64_t address = 0;  // of an object
};

struct Hdf5Dataset {
  Hdf5Type type;
  int64_t size = 0;      // elements of its one dimension
  int64_t position = 0;  // of its first byte in the file; all are inside
};

class Hdf5File {
 public:
  // Reads superblock and root group. `file` must outlive this object.
  explicit Hdf5File(const RawFile& file);

  const std::vector<Hdf5Link>& links() const { return links_; }
  const std::vector<Hdf5Attribute>& attributes() const { return attributes_; }
  // A 1-D dataset without attributes.
  Hdf5Dataset dataset(const Hdf5Link& link) const;

 private:
  struct Message {
    int kind;
    std::vector<uint8_t> body;
  };
  uint64_t read_superblock() const;
  std::vector<uint8_t> read(std::string_view what, uint64_t position, uint64_t bytes) const;
  std::vector<Message> read_object_header(const std::string& where, uint64_t address) const;
  void read_symbol_table(uint64_t tree_address, uint64_t heap_address);

  const RawFile& file_;
  std::vector<Hdf5Link> links_;
  std::vector<Hdf5Attribute> attributes_;
};

}  // namespace braid
