#include "trainer/huggingface/huggingface_writer.h"

#include <cstdio>
#include <span>

#include "kernels/core/durable_file.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/huggingface/config_json.h"
#include "trainer/huggingface/stored_tensors.h"

namespace braid {
namespace {

// A tensor of the folder: elements [begin, end) of a parameter.
struct Piece {
  const TypedParameter* typed;
  int64_t begin, end;
  SafetensorsTensor tensor;

  int64_t bytes() const { return (end - begin) * size_of(typed->dtype); }
  // An upper bound, as its line of the header has: the name, and at most 5 numbers of 19 digits.
  int64_t bytes_with_header() const { return bytes() + static_cast<int64_t>(tensor.name.size()) + 192; }
};

std::vector<Piece> pieces_of(const std::vector<TypedParameter>& parameters) {
  std::vector<Piece> pieces;
  for (const TypedParameter& typed : parameters) {
    int64_t begin = 0;
    for (const StoredTensor& stored : stored_tensors(typed.parameter)) {
      const int64_t end = begin + stored.shape.numel();
      Piece piece{&typed, begin, end, {stored.name, typed.dtype, {}}};
      for (int axis = 0; axis < stored.shape.rank(); ++axis) piece.tensor.shape.push_back(stored.shape[axis]);
      pieces.push_back(std::move(piece));
      begin = end;
    }
  }
  return pieces;
}

std::string file_name(size_t number, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

void write_file(const WeightSource& source, const std::string& path, std::span<const Piece> pieces) {
  std::vector<SafetensorsTensor> tensors;
  int64_t bytes = 0;
  for (const Piece& piece : pieces) {
    tensors.push_back(piece.tensor);
    bytes += piece.bytes();
  }
  const std::string header = make_safetensors_header(tensors, {{"format", "pt"}});
  const int64_t header_bytes = static_cast<int64_t>(header.size());
  DurableFile file(path, header_bytes + bytes);
  file.write(header.data(), header_bytes);
  // The experts of a layer follow one another in their parameter, so they are read together.
  for (size_t first = 0, last = 0; first < pieces.size(); first = last) {
    while (last < pieces.size() && pieces[last].typed == pieces[first].typed) ++last;
    for_each_block(source, *pieces[first].typed, pieces[first].begin, pieces[last - 1].end,
                   [&](const Tensor& block) { file.write(block.raw(), block.bytes()); });
  }
  file.finish();
}

}  // namespace

void write_model_folder(const WeightSource& source, const ModelConfig& model,
                        const std::vector<TypedParameter>& parameters, const std::string& path,
                        int64_t max_file_bytes) {
  const std::vector<Piece> pieces = pieces_of(parameters);
  std::vector<int64_t> bytes;
  int64_t total_bytes = 0;
  for (const Piece& piece : pieces) {
    bytes.push_back(piece.bytes_with_header());
    total_bytes += piece.bytes();
  }
  const auto files = deal_to_files(bytes, max_file_bytes);

  DurableFolder folder(path);
  const auto path_of = [&](const std::string& name) { return folder.temporary() + "/" + name; };
  std::string weight_map;
  for (size_t number = 0; number < files.size(); ++number) {
    const auto& [first, last] = files[number];
    const std::string name = file_name(number, files.size());
    write_file(source, path_of(name), std::span(pieces).subspan(first, last - first));
    for (size_t i = first; i < last; ++i)
      weight_map += concat(i == 0 ? "" : ",\n", "    \"", pieces[i].tensor.name, "\": \"", name, '"');
  }
  if (files.size() > 1)
    write_file_atomically(path_of("model.safetensors.index.json"),
                          concat("{\n  \"metadata\": {\"total_size\": ", total_bytes, "},\n  \"weight_map\": {\n",
                                 weight_map, "\n  }\n}\n"));
  write_file_atomically(path_of("config.json"), to_config_json(model, parameters[0].dtype));
  folder.finish();
}

}  // namespace braid
