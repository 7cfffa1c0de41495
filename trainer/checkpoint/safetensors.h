#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/stored_file.h"
#include "kernels/core/tensor.h"

namespace braid {

// One entry of a safetensors file: 8-byte little-endian header length, JSON header, data without holes.
struct SafetensorsEntry {
  DType dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // bytes from the start of the data part
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;  // __metadata__
  int64_t data_offset = 0;                      // of the data part in the file
};

// Parses and checks the header of a file: every rule of the format, duplicate names included. Takes no memory beyond a
// small multiple of the header.  Errors: CheckpointError with file and rule.
SafetensorsHeader read_safetensors_header(const std::string& path);
SafetensorsHeader read_safetensors_header(const StoredFile& file);

// Header bytes (length prefix included) for entries in the given order, padded with spaces to 8 bytes.
struct SafetensorsTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
};
std::string make_safetensors_header(const std::vector<SafetensorsTensor>& tensors,
                                    const std::map<std::string, std::string>& metadata);

// The dtype of a name as name_of() gives it.
std::optional<DType> find_dtype(std::string_view name);

}  // namespace braid
