#include "trainer/huggingface/huggingface_reader.h"

#include <algorithm>
#include <cassert>
#include <filesystem>
#include <map>

#include "kernels/core/float_types.h"
#include "trainer/checkpoint/json_text.h"
#include "trainer/huggingface/config_json.h"
#include "trainer/huggingface/norm_check.h"
#include "trainer/huggingface/stored_tensors.h"
#include "trainer/huggingface/tensor_folder.h"

namespace braid {
namespace {

constexpr int64_t kBlockElements = int64_t{1} << 17;  // what is read at once is still in the cache when it is scanned

using NamedTensor = std::pair<const std::string, FolderTensor>;

// A parameter as the folder holds it: pieces of equal size, one after the other in row-major order.
struct StoredParameter {
  Shape shape;
  DType dtype;
  std::vector<const NamedTensor*> pieces;
};

bool same_shape(const std::vector<int64_t>& found, const Shape& expected) {
  if (found.size() != static_cast<size_t>(expected.rank())) return false;
  for (int axis = 0; axis < expected.rank(); ++axis)
    if (found[axis] != expected[axis]) return false;
  return true;
}

// As Shape::to_string, for any number of axes.
std::string list_text(const std::vector<int64_t>& numbers) {
  std::string text;
  for (int64_t number : numbers) text += concat(text.empty() ? "" : ", ", number);
  return concat("(", text, ")");
}

// Where in a tensor of this shape the element lies that has this index in row-major order.
std::vector<int64_t> coordinates(const std::vector<int64_t>& shape, int64_t index) {
  std::vector<int64_t> at(shape.size());
  for (size_t axis = shape.size(); axis-- > 0; index /= shape[axis]) at[axis] = index % shape[axis];
  return at;
}

// Index of the first number that is NaN or infinite, -1 if there is none: all bits of its exponent are set.
template <class Bits>
int64_t find_non_finite(const void* data, int64_t count, Bits exponent) {
  const auto* values = static_cast<const Bits*>(data);
  Bits any = 0;
  for (int64_t i = 0; i < count; ++i) any |= static_cast<Bits>((values[i] & exponent) == exponent);
  if (any == 0) return -1;
  return std::find_if(values, values + count, [=](Bits v) { return (v & exponent) == exponent; }) - values;
}

int64_t find_non_finite(const Tensor& block) {
  switch (block.dtype()) {
    case DType::kF32: return find_non_finite<uint32_t>(block.raw(), block.numel(), 0x7f800000);
    case DType::kBF16: return find_non_finite<uint16_t>(block.raw(), block.numel(), 0x7f80);
    default: return find_non_finite<uint16_t>(block.raw(), block.numel(), 0x7c00);  // F16
  }
}

// Compares the folder's tensors with those that the parameters ask for.
class Matcher {
 public:
  Matcher(const std::string& folder, const ModelConfig& config, const TensorFolder& stored)
      : folder_(folder), stored_(stored) {
    check_plausible("num_hidden_layers", config.num_hidden_layers);
  }

  StoredParameter match(const Parameter& parameter) {
    StoredParameter found{.shape = parameter.shape};
    for (const StoredTensor& expected : expected_tensors(parameter)) {
      const auto tensor = stored_.tensors.find(expected.name);
      if (tensor == stored_.tensors.end()) {
        missing_.add(expected.name, " ", expected.shape.to_string());
        continue;
      }
      used_.push_back(&*tensor);
      if (!same_shape(tensor->second.shape, expected.shape))
        misshaped_.add(expected.name, " is ", list_text(tensor->second.shape), ", expected ",
                       expected.shape.to_string());
      check_dtype(*tensor, found);
      found.pieces.push_back(&*tensor);
    }
    return found;
  }

  // To be called when every parameter was matched.
  void finish() {
    std::sort(used_.begin(), used_.end());
    NameList unexpected;
    for (const NamedTensor& tensor : stored_.tensors)
      if (!std::binary_search(used_.begin(), used_.end(), &tensor))
        unexpected.add(tensor.first, " ", list_text(tensor.second.shape));
    std::string wrong;
    const auto add = [&](const NameList& names, const char* what) {
      if (names.count() > 0) wrong += concat(wrong.empty() ? "" : "; ", names.count(), what, names.text());
    };
    add(missing_, " missing: ");
    add(unexpected, " unexpected: ");
    add(misshaped_, " of another shape: ");
    check<CheckpointError>(wrong.empty(), folder_, ": its tensors are not those of the model in config.json: ", wrong);
  }

 private:
  // In the layout that the layer has, fused or one tensor per expert.
  std::vector<StoredTensor> expected_tensors(const Parameter& parameter) const {
    if (!holds_routed_experts(parameter)) return stored_tensors(parameter);
    const std::string experts = parameter.name.substr(0, parameter.name.rfind('.') + 1);
    const std::string fused = first_with(experts + "gate_up_proj", experts + "down_proj");
    const auto at = stored_.tensors.lower_bound(experts + "0");
    const bool per_expert = at != stored_.tensors.end() && at->first < experts + ":";  // which follows "9"
    check<CheckpointError>(fused.empty() || !per_expert, folder_,
                           ": the experts of one layer are stored in two ways: ", fused, " and ",
                           per_expert ? shown_name(at->first) : "");
    if (!fused.empty()) return {{parameter.name, parameter.shape}};
    check_plausible("num_experts", parameter.shape[0]);
    return stored_tensors(parameter);
  }

  // A number of config.json that is far too large must not make lists that fill the memory.
  void check_plausible(const char* key, int64_t value) const {
    const auto num_tensors = static_cast<int64_t>(stored_.tensors.size());
    check<CheckpointError>(value <= num_tensors, folder_, ": config.json says ", key, " ", value,
                           ", but the folder holds ", num_tensors, " tensors in all");
  }

  std::string first_with(const std::string& a, const std::string& b) const {
    return stored_.tensors.contains(a) ? a : stored_.tensors.contains(b) ? b : "";
  }

  void check_dtype(const NamedTensor& tensor, StoredParameter& found) const {
    const auto& [name, entry] = tensor;
    const std::string where = stored_.files[entry.file].path() + ": tensor " + name;
    check<CheckpointError>(entry.dtype == DType::kBF16 || entry.dtype == DType::kF16 || entry.dtype == DType::kF32,
                           where, ": dtype is ", name_of(entry.dtype), ", expected BF16, F16 or F32");
    if (found.pieces.empty()) found.dtype = entry.dtype;
    check<CheckpointError>(entry.dtype == found.dtype, where, ": dtype is ", name_of(entry.dtype), ", but ",
                           name_of(found.dtype), " in ", found.pieces.empty() ? "" : found.pieces[0]->first,
                           ", and the experts of a layer must have one");
  }

  const std::string& folder_;
  const TensorFolder& stored_;
  std::vector<const NamedTensor*> used_;
  NameList missing_, misshaped_;
};

}  // namespace

struct HuggingFaceReader::State {
  std::string folder;
  NonFinite non_finite;
  ModelConfig config;
  TensorFolder stored;
  bool has_mtp = false;
  std::vector<Parameter> parameters;
  std::map<std::string, StoredParameter> by_name;
  int64_t total_bytes = 0, bytes_read = 0;

  void match();
  void check_finite(const NamedTensor& tensor, int64_t first, const Tensor& block) const;
};

void HuggingFaceReader::State::match() {
  const auto mtp = stored.tensors.lower_bound("mtp.");
  has_mtp = mtp != stored.tensors.end() && mtp->first.starts_with("mtp.");
  Matcher matcher(folder, config, stored);
  parameters = parameter_table(config, MtpConfig{.depth = has_mtp ? 1 : 0});
  for (const Parameter& parameter : parameters) by_name.emplace(parameter.name, matcher.match(parameter));
  matcher.finish();
  for (const auto& [name, tensor] : stored.tensors) total_bytes += tensor.bytes;
}

void HuggingFaceReader::State::check_finite(const NamedTensor& tensor, int64_t first, const Tensor& block) const {
  if (non_finite == NonFinite::kAllow) return;
  const int64_t at = find_non_finite(block);
  if (at < 0) return;
  throw CheckpointError(concat(stored.files[tensor.second.file].path(), ": tensor ", tensor.first, ": element ",
                               list_text(coordinates(tensor.second.shape, first + at)), " is not finite"));
}

HuggingFaceReader::HuggingFaceReader(const std::string& folder, NonFinite non_finite)
    : state_(std::make_unique<State>()) {
  state_->folder = folder;
  state_->non_finite = non_finite;
  check<CheckpointError>(std::filesystem::is_directory(folder), folder,
                         ": is no folder on this machine; a model in the Hugging Face format is one");
  state_->config = read_config_json(folder + "/config.json");
  state_->stored = open_tensor_folder(folder);
  state_->match();

  std::vector<double> zero_centred, gated;
  for (const Parameter& p : state_->parameters) {
    const bool is_gated = p.name.ends_with(".linear_attn.norm.weight");
    if (!is_gated && p.decay != Decay::kNorm && p.decay != Decay::kQkNorm) continue;
    std::vector<double>& weights = is_gated ? gated : zero_centred;
    const int64_t count = p.shape.numel(), first = static_cast<int64_t>(weights.size());
    weights.resize(first + count);
    read_weights(p, 0, count, Tensor::of(weights.data() + first, {count}));
  }
  check_norm_centring(folder, std::move(zero_centred), std::move(gated));
}

HuggingFaceReader::~HuggingFaceReader() = default;

const std::string& HuggingFaceReader::path() const { return state_->folder; }
const ModelConfig& HuggingFaceReader::config() const { return state_->config; }
bool HuggingFaceReader::has_mtp() const { return state_->has_mtp; }
const std::vector<Parameter>& HuggingFaceReader::parameters() const { return state_->parameters; }
int64_t HuggingFaceReader::total_bytes() const { return state_->total_bytes; }
int64_t HuggingFaceReader::bytes_read() const { return state_->bytes_read; }

DType HuggingFaceReader::stored_dtype(const Parameter& parameter) const {
  return state_->by_name.at(parameter.name).dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

std::optional<Shape> HuggingFaceReader::stored_shape(const Parameter& parameter) const {
  const auto found = state_->by_name.find(parameter.name);
  return found == state_->by_name.end() ? std::nullopt : std::optional(found->second.shape);
}

void HuggingFaceReader::read_weights(const Parameter& parameter, int64_t begin, int64_t end, Tensor out) const {
  const auto found = state_->by_name.find(parameter.name);
  const bool is_held = found != state_->by_name.end() && found->second.shape == parameter.shape;
  check<CheckpointError>(is_held, state_->folder, ": does not hold ", parameter.name, " in shape ",
                         parameter.shape.to_string());
  const auto& [shape, dtype, pieces] = found->second;
  assert(0 <= begin && begin <= end && end <= shape.numel());
  const bool is_direct = dtype == out.dtype();
  const int64_t piece_numel = shape.numel() / static_cast<int64_t>(pieces.size());
  const Tensor flat = out.view({end - begin});
  const std::unique_ptr<uint32_t[]> memory(is_direct ? nullptr : new uint32_t[kBlockElements]);
  for (int64_t at = begin, count = 0; at < end; at += count) {
    const NamedTensor& piece = *pieces[at / piece_numel];
    const int64_t first = at % piece_numel;
    count = std::min({piece_numel - first, end - at, kBlockElements});
    Tensor to = flat.rows(at - begin, at - begin + count);
    Tensor block = is_direct ? to : Tensor(memory.get(), dtype, {count});
    const FolderTensor& stored = piece.second;
    state_->stored.files[stored.file].read(block.raw(), block.bytes(), stored.position + first * size_of(dtype));
    state_->bytes_read += block.bytes();
    state_->check_finite(piece, first, block);
    if (!is_direct) convert(to, block);
  }
}

}  // namespace braid
