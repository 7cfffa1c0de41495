#pragma once

#include <string>
#include <vector>

#include "kernels/core/durable_file.h"
#include "kernels/core/sha256.h"
#include "trainer/checkpoint/manifest.h"

namespace braid {

// Elements [begin, end) of a logical tensor, as a data file holds them.
struct CheckpointExtent {
  std::string name;
  DType dtype;
  Shape shape;  // of the whole
  int64_t begin = 0, end = 0;
};

// Writes a data file of a checkpoint, front to back: the header first, then the bytes of the extents in their order, in
// pieces of any size, whose memory is the caller's again when write() returns.   Errors: IoError naming the file;
// ShapeError if more comes than the extents have.
class CheckpointFile {
 public:
  CheckpointFile(const std::string& folder, const std::string& name, const std::vector<CheckpointExtent>& extents);

  void write(const void* data, int64_t bytes);
  // The file gets its name.   Returns its part of the manifest.
  Manifest finish();

 private:
  CheckpointFile(const std::string& folder, const std::string& name, const std::vector<CheckpointExtent>& extents,
                 const std::string& header);
  void write_blocks(const void* data, int64_t bytes);

  std::vector<CheckpointExtent> extents_;
  Manifest::File listed_;
  int64_t header_bytes_;
  DurableFile file_;
  Sha256 sha256_;
  std::vector<std::vector<uint32_t>> crc32c_;  // per extent and block
  size_t extent_ = 0;                          // that is being written,
  int64_t done_ = 0;                           // and its bytes that are
};

// rank-00003.safetensors: kind is "rank" or "weights", the only ones that a manifest may name.
std::string data_file_name(const char* kind, int64_t number);

// Reads the data file of a part of a manifest again, from the disk as far as the system allows, and compares every
// digest of a block and of the header.   Errors: CheckpointError naming file and tensor.
void check_data_file(const std::string& folder, const Manifest& part);

}  // namespace braid
