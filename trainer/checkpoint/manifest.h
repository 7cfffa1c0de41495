#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/checkpoint/checkpoint.h"

namespace braid {

// The manifest of a checkpoint: what it is, which files it has, and where every logical tensor lies in them.
struct Manifest {
  struct File {
    std::string name;
    int64_t bytes = 0;
    std::string sha256;
  };
  struct Extent {  // elements [begin, end) of the logical tensor are tensor `entry` of `file`
    int64_t begin = 0, end = 0;
    std::string file, entry;
  };
  struct LogicalTensor {
    DType dtype = DType::kF32;
    Shape shape;
    std::vector<Extent> extents;  // ascending, without gap or overlap
  };

  CheckpointInfo info;
  std::vector<File> files;
  std::map<std::string, LogicalTensor> tensors;

  // Text that ends with the SHA-256 of everything before it.
  std::string to_text() const;
  // Errors: CheckpointError naming `path` and the rule.
  static Manifest parse(const std::string& text, const std::string& path);
  // Throws CheckpointError unless the extents of every tensor cover it exactly once.
  void check_coverage(const std::string& path) const;
};

inline constexpr const char* kManifestName = "MANIFEST.json";

}  // namespace braid
