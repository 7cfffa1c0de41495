#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/stored_file.h"
#include "kernels/core/tensor.h"
#include "trainer/checkpoint/json_text.h"

namespace braid {

struct FolderTensor {
  DType dtype;
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  int64_t position = 0;  // of its first byte in the file
  size_t file = 0;       // index of the file
};

// Names of something wrong, for a message: the first 20 and how many there are.
class NameList {
 public:
  // The name of a tensor, quoted, and what to say of it.
  template <class... Parts>
  void add(const std::string& name, const Parts&... parts) {
    constexpr size_t kShown = 20;
    if (first_.size() < kShown) first_.push_back(concat(shown_name(name), parts...));
    ++count_;
  }
  int64_t count() const { return count_; }
  std::string text() const;  // "a, b and 3 more"

 private:
  std::vector<std::string> first_;
  int64_t count_ = 0;
};

// The safetensors files of a model folder, open, and what their headers say: model.safetensors or, if there is none,
// the files that model.safetensors.index.json lists. With both, transformers reads model.safetensors alone, and so does
// this. Checks everything that needs no knowledge of the model:
//   - every file passes read_safetensors_header, and no tensor is in two of them;
//   - the index names plain files of this folder, each tensor of each file once with the file it is in, and nothing
//     else; metadata.total_size, if it is there, is the sum of the tensors' bytes;
//   - what is a link leads to a file of this folder, or to blobs/ of the hub's cache that this folder is a snapshot in.
// Takes memory for the headers; the index, of which nothing is kept, is read in one piece.
// Errors: CheckpointError with file and rule.
struct TensorFolder {
  std::vector<StoredFile> files;
  std::map<std::string, FolderTensor> tensors;
};
TensorFolder open_tensor_folder(const std::string& folder);

}  // namespace braid
