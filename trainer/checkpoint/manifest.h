#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/safetensors.h"

namespace braid {

// Data is digested in blocks of this size, counted from the begin of an extent; its last block may be shorter.
inline constexpr int64_t kDigestBlockBytes = int64_t{4} << 20;

// The manifest of a checkpoint: what it is, which files it has, and where every logical tensor lies in them.
struct Manifest {
  struct File {
    std::string name;
    int64_t bytes = 0;
    std::string sha256;
    std::optional<uint32_t> header_crc32c;  // of what lies before its first extent; none before format 1.1
  };
  struct Extent {  // elements [begin, end) of the logical tensor lie in `file` from byte `offset`
    int64_t begin = 0, end = 0;
    std::string file;
    int64_t offset = 0;
    std::vector<uint32_t> crc32c;  // of each block; none before format 1.1
  };
  struct LogicalTensor {
    DType dtype = DType::kF32;
    Shape shape;
    std::vector<Extent> extents;  // by begin
  };

  CheckpointInfo info;
  std::vector<File> files;
  std::map<std::string, LogicalTensor> tensors;

  // JSON text, a line per field, file and tensor; its last field is the SHA-256 of everything before the line it stands
  // on.
  std::string to_text() const;
  // Takes a small multiple of the text's size in memory.   Errors: CheckpointError naming `path` and what is wrong.
  static Manifest parse(const std::string& text, const std::string& path);

  // Adds an extent of a tensor, or with `extent.begin == extent.end` only the tensor.
  // Errors: CheckpointError if the tensor is there with another dtype or shape.
  void add(const std::string& name, DType dtype, const Shape& shape, const Extent& extent);
  // Adds the files and tensors of a part.
  void append(const Manifest& part);
  // Throws CheckpointError unless the extents of every tensor cover it exactly once.
  void check_coverage(const std::string& path) const;
};

inline constexpr const char* kManifestName = "MANIFEST.json";

// What elements [begin, end) of a logical tensor are called in a file: a whole tensor keeps its name and shape, a part
// is NAME@BEGIN with one axis.
SafetensorsTensor stored_tensor(const std::string& name, DType dtype, const Shape& shape, int64_t begin, int64_t end);

// Throws ShapeError unless the slice lies inside its tensor and its data has as many elements.
void check_slice(const CheckpointSlice& slice);

}  // namespace braid
