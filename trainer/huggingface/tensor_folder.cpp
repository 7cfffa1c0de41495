#include "trainer/huggingface/tensor_folder.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "trainer/checkpoint/safetensors.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 100'000'000;  // about 100 bytes per tensor

bool exists(const std::string& path) { return fs::symlink_status(path).type() != fs::file_type::not_found; }

// A cache of the hub holds snapshots/REVISION/NAME as links to blobs/DIGEST.
void check_stays_inside(const std::string& folder, const std::string& path) {
  std::error_code error;
  const fs::path target = fs::canonical(path, error);
  if (error) return;  // opening it says why
  const fs::path home = fs::canonical(folder);
  const fs::path snapshots = home.parent_path();
  const bool in_cache =
      snapshots.filename() == "snapshots" && target.parent_path() == snapshots.parent_path() / "blobs";
  check<CheckpointError>(target.parent_path() == home || in_cache, path, ": is a link that leaves the folder, to ",
                         target.string());
}

StoredFile open_file(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  check_stays_inside(folder, path);
  return StoredFile(path, Links::kFollow);
}

// Opens a file and adds what is in it.
void add_file(TensorFolder& into, StoredFile file) {
  SafetensorsHeader header = read_safetensors_header(file);
  while (!header.entries.empty()) {
    auto node = header.entries.extract(header.entries.begin());
    SafetensorsEntry& entry = node.mapped();
    const auto [at, is_new] = into.tensors.try_emplace(
        std::move(node.key()), FolderTensor{entry.dtype, std::move(entry.shape), entry.end - entry.begin,
                                            header.data_offset + entry.begin, into.files.size()});
    check<CheckpointError>(is_new, file.path(), ": tensor ", shown_name(at->first), " is also in ",
                           is_new ? "" : into.files[at->second.file].path());
  }
  into.files.push_back(std::move(file));
}

// Takes the index line by line and compares it with the files, which it opens when they are first named, so nothing is
// kept of what it says.
class IndexParser : public nlohmann::json_sax<Json> {
 public:
  IndexParser(const std::string& folder, const std::string& path, TensorFolder& into)
      : folder_(folder), path_(path), into_(into) {}

  // To be called at the end of the text.
  void finish() {
    check<CheckpointError>(has_weight_map_, path_, ": weight_map is missing");
    check<CheckpointError>(!files_.empty(), path_, ": weight_map is empty");
    check<CheckpointError>(absent_.count() == 0, path_, ": ", absent_.count(),
                           " listed but not in the file: ", absent_.text());
    NameList unlisted;
    int64_t bytes = 0;
    for (const auto& [name, tensor] : into_.tensors) {
      bytes += tensor.bytes;
      if (!listed_.contains(&tensor)) unlisted.add(name, " of ", into_.files[tensor.file].path());
    }
    check<CheckpointError>(unlisted.count() == 0, path_, ": ", unlisted.count(),
                           " in a file but not listed: ", unlisted.text());
    check<CheckpointError>(total_size_.value_or(bytes) == bytes, path_, ": metadata.total_size is ",
                           total_size_.value_or(0), ", but its tensors have ", bytes, " bytes");
  }

  bool null() override { return other_value(); }
  bool boolean(bool) override { return other_value(); }
  bool number_integer(number_integer_t) override { return other_value(); }
  bool number_float(number_float_t, const string_t&) override { return other_value(); }
  bool binary(binary_t&) override { return other_value(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!at_total_size()) return other_value();
    check<CheckpointError>(value <= static_cast<uint64_t>(INT64_MAX), path_, ": metadata.total_size is ", value,
                           ", which is too large");
    total_size_ = static_cast<int64_t>(value);
    return true;
  }

  bool string(string_t& value) override {
    if (!in_weight_map()) return other_value();
    add_line(key_, value);
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ == 0 || (depth_ == 1 && (section_ == kWeightMap || section_ == kMetadata))) {
      ++depth_;
      return true;
    }
    return start_other();
  }
  bool start_array(size_t) override { return start_other(); }
  bool end_object() override { return end(); }
  bool end_array() override { return end(); }

  bool key(string_t& key) override {
    if (depth_ == 1) {
      section_ = key;
      const bool is_new = (key != kWeightMap || !std::exchange(has_weight_map_, true)) &&
                          (key != kMetadata || !std::exchange(has_metadata_, true));
      check<CheckpointError>(is_new, path_, ": holds ", key, " twice");
    } else if (depth_ == 2) {
      key_ = key;
      check<CheckpointError>(!at_total_size() || !total_size_, path_, ": holds metadata.total_size twice");
    }
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw CheckpointError(concat(path_, ": is not valid JSON in UTF-8 at byte ", position));
  }

 private:
  static constexpr const char* kWeightMap = "weight_map";
  static constexpr const char* kMetadata = "metadata";

  bool in_weight_map() const { return depth_ == 2 && section_ == kWeightMap; }
  bool at_total_size() const { return depth_ == 2 && section_ == kMetadata && key_ == "total_size"; }

  // A value of a kind that has no meaning here: ignored where everything is.
  bool other_value() const {
    check<CheckpointError>(depth_ > 0, path_, ": is not an object");
    check<CheckpointError>(depth_ > 1 || (section_ != kWeightMap && section_ != kMetadata), path_, ": ", section_,
                           " is not an object");
    check<CheckpointError>(!in_weight_map(), path_, ": weight_map ", shown_name(key_), " is not the name of a file");
    check<CheckpointError>(!at_total_size(), path_, ": metadata.total_size is not a number of bytes");
    return true;
  }
  bool start_other() {
    other_value();
    ++depth_;
    return true;
  }
  bool end() {
    --depth_;
    return true;
  }

  void add_line(const std::string& name, const std::string& file_name) {
    const auto [file, is_new] = files_.try_emplace(file_name, into_.files.size());
    if (is_new) {
      const bool is_plain = !file_name.empty() && file_name != "." && file_name != ".." &&
                            file_name.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
      check<CheckpointError>(is_plain, path_, ": weight_map ", shown_name(name), " names ", shown_name(file_name),
                             ", which is not a file name in this folder");
      add_file(into_, open_file(folder_, file_name));
    }
    const auto found = into_.tensors.find(name);
    if (found == into_.tensors.end() || found->second.file != file->second) {
      absent_.add(name, " in ", file_name);
      return;
    }
    check<CheckpointError>(listed_.insert(&found->second).second, path_, ": weight_map holds the name ",
                           shown_name(name), " twice");
  }

  const std::string& folder_;
  const std::string& path_;
  TensorFolder& into_;
  int depth_ = 0;
  bool has_weight_map_ = false, has_metadata_ = false;
  std::string section_, key_;  // the key that is open at depth 1 and at depth 2
  std::optional<int64_t> total_size_;
  std::map<std::string, size_t> files_;
  std::set<const FolderTensor*> listed_;
  NameList absent_;
};

void add_index(TensorFolder& into, const std::string& folder) {
  const StoredFile file = open_file(folder, kIndexName);
  check<CheckpointError>(file.size() <= kMaxIndexBytes, file.path(), ": is ", file.size(), " bytes long, at most ",
                         kMaxIndexBytes, " are read");
  IndexParser parser(folder, file.path(), into);
  Json::sax_parse(read_json_text(file, 0, file.size()), &parser);
  parser.finish();
}

// What is in the folder instead of weights that can be opened.
std::string without_weights(const std::string& folder) {
  int64_t unlisted = 0;
  std::string pickled;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    unlisted += name.ends_with(".safetensors");
    if (name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth")) pickled = name;
  }
  if (unlisted > 0)
    return concat(", which says what is in the ", unlisted,
                  " *.safetensors there; it comes with the model, download it too");
  return pickled.empty()
             ? ""
             : concat(", only files like ", pickled, "; save_pretrained of transformers writes safetensors");
}

}  // namespace

std::string NameList::text() const {
  std::string text;
  for (const std::string& name : first_) text += (text.empty() ? "" : ", ") + name;
  const int64_t more = count_ - static_cast<int64_t>(first_.size());
  return more == 0 ? text : concat(text, " and ", more, " more");
}

TensorFolder open_tensor_folder(const std::string& folder) {
  TensorFolder opened;
  if (exists(folder + "/" + kSingleName)) {
    add_file(opened, open_file(folder, kSingleName));
  } else {
    check<CheckpointError>(exists(folder + "/" + kIndexName), folder, ": holds neither ", kSingleName, " nor ",
                           kIndexName, without_weights(folder));
    add_index(opened, folder);
  }
  return opened;
}

}  // namespace braid
