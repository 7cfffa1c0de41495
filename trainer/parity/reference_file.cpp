#include "trainer/parity/reference_file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "trainer/checkpoint/json_text.h"
#include "trainer/huggingface/stored_tensors.h"

namespace braid {
namespace {

const std::string kGradient = "grad.";

// Safetensors files are read as parts of a checkpoint; this one is data.
template <class Body>
auto as_data_error(Body&& body) {
  try {
    return body();
  } catch (const CheckpointError& e) {
    throw DataError(e.what());
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t dim : shape) text += concat(text.empty() ? "" : ", ", dim < 0 ? "*" : std::to_string(dim));
  return concat("(", text, ")");
}

std::vector<int64_t> extents_of(const Shape& shape) {
  std::vector<int64_t> extents;
  for (int axis = 0; axis < shape.rank(); ++axis) extents.push_back(shape[axis]);
  return extents;
}

template <class T>
int64_t find_non_finite(const Tensor& t) {
  const T* values = t.data<T>();
  return std::find_if(values, values + t.numel(), [](T v) { return !std::isfinite(v); }) - values;
}

void check_tokens(const ReferenceFile& file, const std::string& name, const std::vector<int64_t>& tokens,
                  int64_t vocab_size) {
  for (size_t i = 0; i < tokens.size(); ++i)
    check<DataError>(tokens[i] >= 0 && tokens[i] < vocab_size, file.path(), ": ", name, " holds ", tokens[i],
                     " at element ", i, ", the model's vocabulary has ", vocab_size);
}

std::vector<int64_t> read_documents(const ReferenceFile& file, int64_t num_rows, int64_t row_tokens) {
  file.expect("cu_seqlens", DType::kI64, {-1});
  check<DataError>(num_rows == 1, file.path(), ": has cu_seqlens and ", num_rows, " rows, expected one packed row");
  const auto offsets = file.read_all<int64_t>("cu_seqlens");
  const bool spans_the_row = offsets.front() == 0 && offsets.back() == row_tokens;
  const bool increases = std::adjacent_find(offsets.begin(), offsets.end(), std::greater_equal<>()) == offsets.end();
  check<DataError>(spans_the_row && increases, file.path(), ": cu_seqlens must increase strictly from 0 to the ",
                   row_tokens, " tokens of the row");
  return offsets;
}

// A parameter's gradient as one tensor, or as one per expert and projection.
std::vector<ReferenceGradient> gradients_of(const std::string& parameter, const std::vector<StoredTensor>& tensors) {
  std::vector<ReferenceGradient> gradients;
  int64_t first = 0;
  for (const StoredTensor& t : tensors) {
    gradients.push_back({kGradient + t.name, parameter, first, t.shape.numel(), extents_of(t.shape)});
    first += t.shape.numel();
  }
  return gradients;
}

OptimizerConfig read_optimizer(const ReferenceFile& file) {
  OptimizerConfig optimizer{.lr = 1e-3, .norm_weight_decay = NormWeightDecay::kNone};
  const auto read = [&](const std::string& key, double below, double& value) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end()) return;
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool is_number = error == std::errc() && end == text.data() + text.size();
    check<DataError>(is_number && value >= 0 && value < below, file.path(), ": metadata ", key, " is ",
                     shown_name(text), ", expected a number of at least 0 and below ", below);
  };
  constexpr double kAny = std::numeric_limits<double>::infinity();
  read("lr", kAny, optimizer.lr);
  read("beta1", 1, optimizer.beta1);
  read("beta2", 1, optimizer.beta2);
  read("eps", kAny, optimizer.eps);
  read("weight_decay", kAny, optimizer.weight_decay);
  read("max_grad_norm", kAny, optimizer.max_grad_norm);
  return optimizer;
}

}  // namespace

ReferenceFile::ReferenceFile(const std::string& path)
    : file_(as_data_error([&] { return StoredFile(path, Links::kFollow); })),
      header_(as_data_error([&] { return read_safetensors_header(file_); })) {}

const SafetensorsEntry& ReferenceFile::expect(const std::string& name, DType dtype,
                                              const std::vector<int64_t>& shape) const {
  const auto found = header_.entries.find(name);
  check<DataError>(found != header_.entries.end(), path(), ": holds no ", name);
  const SafetensorsEntry& entry = found->second;
  const bool fits = std::equal(entry.shape.begin(), entry.shape.end(), shape.begin(), shape.end(),
                               [](int64_t is, int64_t expected) { return expected < 0 ? is >= 1 : is == expected; });
  check<DataError>(entry.dtype == dtype && fits, path(), ": ", name, " is ", name_of(entry.dtype), " ",
                   shape_text(entry.shape), ", expected ", name_of(dtype), " ", shape_text(shape));
  return entry;
}

void ReferenceFile::expect_only(const std::set<std::string>& names) const {
  for (const auto& [name, entry] : header_.entries)
    check<DataError>(names.contains(name), path(), ": holds ", shown_name(name),
                     ", which is no part of a reference for this model");
}

void ReferenceFile::read(const std::string& name, int64_t first, Tensor out) const {
  const SafetensorsEntry& entry = header_.entries.at(name);
  const int64_t position = header_.data_offset + entry.begin + first * size_of(out.dtype());
  as_data_error([&] { file_.read(out.raw(), out.bytes(), position); });
  int64_t at = out.numel();
  if (out.dtype() == DType::kF32) at = find_non_finite<float>(out);
  if (out.dtype() == DType::kF64) at = find_non_finite<double>(out);
  check<DataError>(at == out.numel(), path(), ": ", name, ": element ", first + at, " is not finite");
}

Batch batch_of_rows(std::vector<int64_t> tokens, int64_t num_rows, const std::vector<int64_t>& documents) {
  Batch batch;
  batch.num_rows = num_rows;
  batch.row_tokens = static_cast<int64_t>(tokens.size()) / num_rows;
  batch.targets.assign(tokens.begin() + 1, tokens.end());
  batch.targets.push_back(-1);
  for (int64_t row = 1; row < num_rows; ++row) batch.targets[row * batch.row_tokens - 1] = -1;
  batch.tokens = std::move(tokens);
  batch.segments = Segments::whole_rows(num_rows, batch.row_tokens);
  if (!documents.empty()) batch.segments.offsets = documents;
  batch.complete();
  return batch;
}

ForwardReference::ForwardReference(const std::string& path) : file(path) {
  const SafetensorsEntry& entry = file.expect("input_ids", DType::kI64, {-1, -1});
  const int64_t B = entry.shape[0], T = entry.shape[1];
  batch = batch_of_rows(file.read_all<int64_t>("input_ids"), B,
                        file.has("cu_seqlens") ? read_documents(file, B, T) : std::vector<int64_t>());
}

bool ForwardReference::names_mtp() const {
  const auto gradient = file.entries().lower_bound("grad.mtp.");
  return file.has("mtp_logits") || (gradient != file.entries().end() && gradient->first.starts_with("grad.mtp."));
}

void ForwardReference::match(int64_t vocab_size, const std::vector<Parameter>& table) {
  const int64_t B = batch.num_rows, T = batch.row_tokens;
  check_tokens(file, "input_ids", batch.tokens, vocab_size);
  file.expect("logits", DType::kF32, {B, T, vocab_size});
  if (file.has("mtp_logits")) {
    file.expect("mtp_logits", DType::kF32, {B, T - 1, vocab_size});
    check<DataError>(batch.counts.mtp_tokens > 0, file.path(),
                     ": has mtp_logits, but no token is followed by another of its document");
  }

  const auto is_held = [&](const ReferenceGradient& g) { return file.has(g.name); };
  std::set<std::string> known = {"input_ids", "logits", "loss", "mtp_logits", "cu_seqlens"};
  for (const Parameter& p : table) {
    auto expected = gradients_of(p.name, stored_tensors(p));
    if (std::none_of(expected.begin(), expected.end(), is_held)) expected = gradients_of(p.name, {{p.name, p.shape}});
    for (const ReferenceGradient& g : expected) {
      if (!is_held(g)) {
        not_compared.push_back(g.name.substr(kGradient.size()));
        continue;
      }
      file.expect(g.name, DType::kF32, g.shape);
      gradients.push_back(g);
      known.insert(g.name);
    }
  }
  file.expect_only(known);
  if (gradients.empty()) not_compared.clear();
  if (file.has("loss")) file.expect("loss", DType::kF32, {1});
  check<DataError>(T > 1 || (gradients.empty() && !file.has("loss")), file.path(),
                   ": has a loss or gradients, but rows of one token have none");
}

TrainingReference::TrainingReference(const std::string& path, int64_t vocab_size) {
  const ReferenceFile file(path);
  file.expect_only({"batches", "losses", "grad_norms"});
  optimizer = read_optimizer(file);
  const SafetensorsEntry& entry = file.expect("batches", DType::kI64, {-1, -1, -1});
  const int64_t S = entry.shape[0], B = entry.shape[1], T = entry.shape[2];
  file.expect("losses", DType::kF64, {S});
  file.expect("grad_norms", DType::kF64, {S});
  check<DataError>(T > 1, path, ": batches has rows of one token, which have no loss");
  losses = file.read_all<double>("losses");
  grad_norms = file.read_all<double>("grad_norms");
  const auto tokens = file.read_all<int64_t>("batches");
  check_tokens(file, "batches", tokens, vocab_size);
  for (int64_t step = 0; step < S; ++step) {
    const auto first = tokens.begin() + step * B * T;
    batches.push_back(batch_of_rows({first, first + B * T}, B));
  }
}

}  // namespace braid
