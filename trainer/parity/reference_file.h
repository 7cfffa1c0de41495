#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/core/batch.h"
#include "model/parameters.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/optimizer/optimizer_config.h"

namespace braid {

// A safetensors file with what another program computed, open for reading.
// Errors: DataError with file and tensor, also for what is wrong with the file as a whole.
class ReferenceFile {
 public:
  explicit ReferenceFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  bool has(const std::string& name) const { return header_.entries.contains(name); }

  // Refuses a tensor that is missing or has another dtype or number of axes. An extent of -1 may be anything >= 1.
  const SafetensorsEntry& expect(const std::string& name, DType dtype, const std::vector<int64_t>& shape) const;
  // Refuses a tensor that is none of these.
  void expect_only(const std::set<std::string>& names) const;

  // Elements [first, first + out.numel()) of a tensor in its own dtype. Refuses numbers that are not finite.
  void read(const std::string& name, int64_t first, Tensor out) const;
  template <class T>
  std::vector<T> read_all(const std::string& name) const {
    const SafetensorsEntry& entry = header_.entries.at(name);
    std::vector<T> values((entry.end - entry.begin) / static_cast<int64_t>(sizeof(T)));
    read(name, 0, Tensor::of(values.data(), {static_cast<int64_t>(values.size())}));
    return values;
  }

 private:
  StoredFile file_;
  SafetensorsHeader header_;
};

// Rows of tokens as a complete batch. Every token but the last of its row has the next one as target, across documents
// too. documents: offsets of the documents of one row, or empty if every row is a document.
Batch batch_of_rows(std::vector<int64_t> tokens, int64_t num_rows, const std::vector<int64_t>& documents = {});

// A gradient in a reference file and the elements of the parameter that it belongs to.
struct ReferenceGradient {
  std::string name;       // in the file
  std::string parameter;  // of the model's table
  int64_t first = 0, numel = 0;
  std::vector<int64_t> shape;
};

// What a reference of one forward pass holds; see docs/parity.md. Logits and gradients stay in the file.
struct ForwardReference {
  ReferenceFile file;
  Batch batch;
  std::vector<ReferenceGradient> gradients;  // in the order of the parameter table
  std::vector<std::string> not_compared;     // gradients that the file does not hold, if it holds any

  explicit ForwardReference(const std::string& path);
  // Whether the file says something about the MTP block.
  bool names_mtp() const;
  // Checks the file against a model and lists its gradients.
  void match(int64_t vocab_size, const std::vector<Parameter>& table);
};

// What a reference of a training holds: S steps on one batch of B rows each, AdamW settings in the metadata.
struct TrainingReference {
  std::vector<Batch> batches;
  std::vector<double> losses, grad_norms;  // mean next-token loss and gradient norm before clipping of each step
  OptimizerConfig optimizer;

  TrainingReference(const std::string& path, int64_t vocab_size);
};

}  // namespace braid
