#include "data/token_shard.h"

#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <mutex>
#include <system_error>
#include <utility>

#include "data/hdf5_file.h"
#include "data/pooled_file.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"

namespace braid {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are copied from the file as they are");

constexpr const char* kFormat = "braid-tokens";
constexpr int64_t kFormatVersion = 1;
constexpr int64_t kMaxVocabulary = int64_t{1} << 32;
constexpr size_t kMaxStringBytes = 4096;
constexpr int64_t kBlockTokens = 8192;

// ---- Reading: the one content of an HDF5 file that is a shard

template <class Items>
auto find_only(const std::string& path, const char* what, const Items& items, const std::string& name) {
  const auto has_name = [&](const auto& item) { return item.name == name; };
  const auto count = std::count_if(items.begin(), items.end(), has_name);
  check<OtherHdf5>(count == 1, path, ": ", what, " ", name, count == 0 ? " is missing" : " is there more than once");
  return *std::find_if(items.begin(), items.end(), has_name);
}

class Attributes {
 public:
  explicit Attributes(const std::string& path, const std::vector<Hdf5Attribute>& attributes)
      : path_(path), attributes_(attributes) {}

  std::string text(const char* name) const {
    const Hdf5Attribute attribute = find(name);
    check<OtherHdf5>(attribute.type.is_fixed_string(), where(name), ": expected a string of fixed length, found ",
                     attribute.type.description());
    std::string value = attribute.value.substr(0, attribute.value.find('\0'));
    check<DataError>(!value.empty() && value.size() <= kMaxStringBytes, where(name), ": expected 1 to ",
                     kMaxStringBytes, " bytes, found ", value.size());
    return value;
  }

  int64_t integer(const char* name, int64_t low, int64_t high) const {
    const Hdf5Attribute attribute = find(name);
    const Hdf5Type& type = attribute.type;
    check<OtherHdf5>(type.is_integer() && !type.is_big_endian && 1 <= type.bytes && type.bytes <= 8, where(name),
                     ": expected an integer of at most 64 bits (little-endian), found ", type.description());
    uint64_t bits = 0;
    std::memcpy(&bits, attribute.value.data(), type.bytes);
    const int64_t unused = 64 - 8 * type.bytes;
    const auto value = type.is_signed ? static_cast<int64_t>(bits << unused) >> unused : static_cast<int64_t>(bits);
    check<DataError>(low <= value && value <= high, where(name), ": is ", value, ", expected ", low, " to ", high);
    return value;
  }

 private:
  std::string where(const char* name) const { return concat(path_, ": attribute ", name); }
  Hdf5Attribute find(const char* name) const {
    Hdf5Attribute attribute = find_only(path_, "attribute", attributes_, name);
    check<OtherHdf5>(attribute.is_scalar, where(name), ": expected a scalar, found an array");
    return attribute;
  }

  const std::string& path_;
  const std::vector<Hdf5Attribute>& attributes_;
};

ShardInfo parse_attributes(const std::string& path, const std::vector<Hdf5Attribute>& all) {
  constexpr std::array kNames = {"format",           "format_version", "vocab_size",    "end_of_document", "tokenizer",
                                 "tokenizer_digest", "num_tokens",     "num_documents", "source_digest"};
  bool has_source_digest = false;
  for (const Hdf5Attribute& attribute : all) {
    check<OtherHdf5>(std::find(kNames.begin(), kNames.end(), attribute.name) != kNames.end(), path,
                     ": unknown attribute ", attribute.name);
    has_source_digest |= attribute.name == "source_digest";
  }
  const Attributes attributes(path, all);
  const std::string format = attributes.text("format");
  check<DataError>(format == kFormat, path, ": attribute format: is ", format, ", expected ", kFormat);
  attributes.integer("format_version", kFormatVersion, kFormatVersion);
  ShardInfo info;
  info.path = path;
  info.vocab_size = attributes.integer("vocab_size", 1, kMaxVocabulary);
  info.end_of_document = attributes.integer("end_of_document", 0, info.vocab_size - 1);
  info.num_tokens = attributes.integer("num_tokens", 0, INT64_MAX);
  info.num_documents = attributes.integer("num_documents", 0, INT64_MAX);
  info.tokenizer = attributes.text("tokenizer");
  info.tokenizer_digest = attributes.text("tokenizer_digest");
  if (has_source_digest) info.source_digest = attributes.text("source_digest");
  return info;
}

Hdf5Dataset find_dataset(const std::string& path, const Hdf5File& file, const char* name,
                         std::initializer_list<int64_t> sizes) {
  const Hdf5Dataset dataset = file.dataset(find_only(path, "dataset", file.links(), name));
  const Hdf5Type& type = dataset.type;
  std::string bits;
  for (int64_t size : sizes) bits += concat(bits.empty() ? "" : " or ", 8 * size);
  check<OtherHdf5>(type.is_integer() && !type.is_signed && !type.is_big_endian &&
                       std::find(sizes.begin(), sizes.end(), type.bytes) != sizes.end(),
                   path, ": ", name, ": expected unsigned ", bits, "-bit integers (little-endian), found ",
                   type.description());
  return dataset;
}

// Offsets [first, last] of a shard with these documents and tokens.
void check_offsets(const std::string& path, const ShardInfo& info, int64_t first, int64_t last,
                   const int64_t* offsets) {
  const int64_t count = last - first + 1;
  int64_t fall = 0;  // the first that is smaller than the one before it
  for (int64_t i = 1; i < count && fall == 0; ++i)
    if (offsets[i] < offsets[i - 1]) fall = i;
  const bool ok =
      fall == 0 && (first > 0 ? offsets[0] >= 0 : offsets[0] == 0) &&
      (last < info.num_documents ? offsets[count - 1] <= info.num_tokens : offsets[count - 1] == info.num_tokens);
  if (ok) return;
  const std::string where = path + ": document_offsets";
  check<DataError>(first > 0 || offsets[0] == 0, where, ": expected to start at 0, found ", offsets[0]);
  check<DataError>(fall == 0, where, ": expected ascending values, found ", offsets[fall], " at ", first + fall,
                   " after ", offsets[std::max<int64_t>(fall, 1) - 1]);
  throw DataError(concat(where, ": expected to end at the ", info.num_tokens, " tokens, found ", offsets[count - 1]));
}

// Reads at most kBlockTokens stored tokens as ids. Returns the largest.
template <class Stored>
uint32_t read_block(const RawFile& file, int64_t position, int64_t count, uint32_t* out) {
  std::array<Stored, kBlockTokens> stored;
  file.read(stored.data(), count * static_cast<int64_t>(sizeof(Stored)), position);
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = stored[i];
    largest = std::max<uint32_t>(largest, stored[i]);
  }
  return largest;
}

}  // namespace

struct TokenShard::File {
  explicit File(const std::string& path) : pooled(path) {}
  PooledFile pooled;
  ShardInfo info;
  int64_t tokens_position = 0, offsets_position = 0;

  void parse(const std::string& path);
};

void TokenShard::File::parse(const std::string& path) {
  const auto raw = pooled.file();
  const Hdf5File hdf5(*raw);
  for (const Hdf5Link& link : hdf5.links())
    check<OtherHdf5>(link.name == "tokens" || link.name == "document_offsets", path, ": unknown ", link.kind, " ",
                     link.name, ": only the datasets tokens and document_offsets may be there");
  info = parse_attributes(path, hdf5.attributes());
  const Hdf5Dataset tokens = find_dataset(path, hdf5, "tokens", {2, 4});
  const Hdf5Dataset offsets = find_dataset(path, hdf5, "document_offsets", {8});
  check<DataError>(info.num_tokens == tokens.size, path, ": attribute num_tokens: is ", info.num_tokens,
                   ", but tokens has ", tokens.size, " elements");
  check<DataError>(info.num_documents == offsets.size - 1, path, ": attribute num_documents: is ", info.num_documents,
                   ", but document_offsets has ", offsets.size, " elements instead of one more");
  info.token_bytes = static_cast<int>(tokens.type.bytes);
  tokens_position = tokens.position;
  offsets_position = offsets.position;
}

TokenShard::TokenShard(const std::string& path, CheckOffsets when) : file_(std::make_unique<File>(path)) {
  try {
    file_->parse(path);
  } catch (const OtherHdf5& e) {
    throw DataError(concat(e.what(), "; other HDF5 files are read by `braid data convert --from ", path, " --to DIR`"));
  }
  if (when == CheckOffsets::kWhenRead) return;
  std::vector<int64_t> block(kBlockTokens + 1);
  const int64_t documents = file_->info.num_documents;
  for (int64_t first = 0; first == 0 || first < documents; first += kBlockTokens)
    read_offsets(first, std::min(first + kBlockTokens, documents), block.data());
}

TokenShard::~TokenShard() = default;
TokenShard::TokenShard(TokenShard&&) noexcept = default;
TokenShard& TokenShard::operator=(TokenShard&&) noexcept = default;

const ShardInfo& TokenShard::info() const { return file_->info; }
int64_t TokenShard::tokens_position() const { return file_->tokens_position; }
const FileStamp& TokenShard::stamp() const { return file_->pooled.stamp(); }

std::vector<int64_t> TokenShard::document_offsets() const {
  std::vector<int64_t> offsets(info().num_documents + 1);
  read_offsets(0, info().num_documents, offsets.data());
  return offsets;
}

void TokenShard::read_offsets(int64_t first, int64_t last, int64_t* out) const {
  const ShardInfo& info = file_->info;
  assert(0 <= first && first <= last && last <= info.num_documents);
  file_->pooled.file()->read(out, 8 * (last - first + 1), file_->offsets_position + 8 * first);
  check_offsets(info.path, info, first, last, out);
}

void TokenShard::read(int64_t begin, int64_t end, uint32_t* out) const {
  const ShardInfo& info = file_->info;
  assert(0 <= begin && begin <= end && end <= info.num_tokens);
  const auto raw = file_->pooled.file();
  const auto read_stored = info.token_bytes == 2 ? read_block<uint16_t> : read_block<uint32_t>;
  while (begin < end) {
    const int64_t count = std::min(end - begin, kBlockTokens);
    const int64_t position = file_->tokens_position + begin * info.token_bytes;
    const uint32_t largest = read_stored(*raw, position, count, out);
    if (largest >= info.vocab_size) {
      const uint32_t* bad = std::find_if(out, out + count, [&](uint32_t id) { return id >= info.vocab_size; });
      throw DataError(concat(info.path, ": tokens[", begin + (bad - out), "] is ", *bad, ", outside the vocabulary of ",
                             info.vocab_size));
    }
    begin += count;
    out += count;
  }
}

// ---- Writing, by libhdf5

namespace {

// All calls into libhdf5 happen under this lock: version 1.10 knows no concurrency. Failures are reported by exceptions
// of ours, so it need not print them (a setting of each thread).
class Hdf5Lock {
 public:
  Hdf5Lock() : lock_(mutex()) { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::scoped_lock<std::mutex> lock_;
};

class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { close(); }
  bool close() { return id_ < 0 || close_(std::exchange(id_, hid_t{-1})) >= 0; }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void check_hdf5(bool ok, const std::string& path, std::string_view what) {
  if (ok) return;
  std::string reason = "no reason given";
  auto visit = [](unsigned, const H5E_error2_t* error, void* reason) -> herr_t {
    *static_cast<std::string*>(reason) = error->desc;
    return 1;  // the first is where it was noticed
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, visit, &reason);
  throw IoError(concat(path, ": cannot ", what, ": HDF5: ", reason));
}

void write_attribute(const std::string& path, hid_t root, const char* name, hid_t type, const void* value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate2(root, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  check_hdf5(attribute >= 0 && H5Awrite(attribute, type, value) >= 0, path, concat("write attribute ", name));
}

void write_attribute(const std::string& path, hid_t root, const char* name, int64_t value) {
  write_attribute(path, root, name, H5T_STD_I64LE, &value);
}

void write_attribute(const std::string& path, hid_t root, const char* name, const std::string& value) {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, value.size() + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  write_attribute(path, root, name, type, value.c_str());
}

// Lays out a dataset and returns the byte where its values go.
int64_t create_dataset(const std::string& path, hid_t root, const char* name, hid_t type, hsize_t size) {
  const Handle space(H5Screate_simple(1, &size, nullptr), H5Sclose);
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_layout(creation, H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(creation, false);  // same tokens, same bytes
  const Handle dataset(H5Dcreate2(root, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose);
  check_hdf5(dataset >= 0, path, concat("create ", name));
  return size == 0 ? 0 : static_cast<int64_t>(H5Dget_offset(dataset));
}

struct Positions {
  int64_t tokens, offsets;
};

// A whole shard but for the values of its datasets.
Positions lay_out(const std::string& path, const ShardInfo& info) {
  Hdf5Lock lock;
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose), creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_fapl_sec2(access);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  H5Pset_file_locking(access, true, true);                         // unless the file system has no locks
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);  // every piece of metadata carries a checksum
  H5Pset_meta_block_size(access, 0);                               // no unused bytes between the pieces
  H5Pset_small_data_block_size(access, 0);
  H5Pset_attr_phase_change(creation, 16, 0);  // attributes stay in the group's header
  H5Pset_obj_track_times(creation, false);
  Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose);
  check_hdf5(file >= 0, path, "create the file");
  Positions at = {};
  {
    const Handle root(H5Gopen2(file, "/", H5P_DEFAULT), H5Gclose);
    const hid_t stored = info.token_bytes == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    at.tokens = create_dataset(path, root, "tokens", stored, info.num_tokens);
    at.offsets = create_dataset(path, root, "document_offsets", H5T_STD_U64LE, info.num_documents + 1);
    write_attribute(path, root, "format", std::string(kFormat));
    write_attribute(path, root, "format_version", kFormatVersion);
    write_attribute(path, root, "vocab_size", info.vocab_size);
    write_attribute(path, root, "end_of_document", info.end_of_document);
    write_attribute(path, root, "tokenizer", info.tokenizer);
    write_attribute(path, root, "tokenizer_digest", info.tokenizer_digest);
    write_attribute(path, root, "num_tokens", info.num_tokens);
    write_attribute(path, root, "num_documents", info.num_documents);
    if (!info.source_digest.empty()) write_attribute(path, root, "source_digest", info.source_digest);
  }
  check_hdf5(file.close(), path, "write the file");
  return at;
}

void copy_bytes(const RawFile& from, RawFile& to, int64_t bytes, int64_t to_position) {
  std::string block(1 << 20, '\0');
  for (int64_t done = 0; done < bytes;) {
    const int64_t now = std::min(static_cast<int64_t>(block.size()), bytes - done);
    from.read(block.data(), now, done);
    to.write(block.data(), now, to_position + done);
    done += now;
  }
}

}  // namespace

// The size of contiguous storage must be known when it is created. So the tokens are collected in a file without a
// name; close() lets libhdf5 lay out the shard and then copies them to their place.
struct TokenShardWriter::File {
  ShardInfo info;
  RawFile collected;
  std::vector<int64_t> offsets = {0};
  std::string pending;  // stored tokens on their way to `collected`
  int64_t collected_bytes = 0;
  bool is_closed = false;

  template <class Stored>
  void append_stored(std::span<const uint32_t> tokens) {
    const size_t begin = pending.size();
    pending.resize(begin + tokens.size() * sizeof(Stored));
    for (size_t i = 0; i < tokens.size(); ++i) {
      const auto stored = static_cast<Stored>(tokens[i]);
      std::memcpy(&pending[begin + i * sizeof stored], &stored, sizeof stored);
    }
  }

  void flush() {
    collected.write(pending.data(), static_cast<int64_t>(pending.size()), collected_bytes);
    collected_bytes += static_cast<int64_t>(pending.size());
    pending.clear();
  }
};

TokenShardWriter::TokenShardWriter(std::string path, int64_t vocab_size, int64_t end_of_document, std::string tokenizer,
                                   std::string tokenizer_digest) {
  check<DataError>(1 <= vocab_size && vocab_size <= kMaxVocabulary, path, ": a vocabulary of ", vocab_size,
                   " ids cannot be stored");
  check<DataError>(0 <= end_of_document && end_of_document < vocab_size, path, ": end-of-document id ", end_of_document,
                   " is outside the vocabulary of ", vocab_size);
  for (const std::string* text : {&tokenizer, &tokenizer_digest})
    check<DataError>(!text->empty() && text->size() < kMaxStringBytes, path,
                     ": tokenizer name and digest must have 1 to ", kMaxStringBytes - 1, " bytes");
  ShardInfo info;
  info.path = std::move(path);
  info.vocab_size = vocab_size;
  info.end_of_document = end_of_document;
  info.token_bytes = vocab_size <= 1 << 16 ? 2 : 4;
  info.tokenizer = std::move(tokenizer);
  info.tokenizer_digest = std::move(tokenizer_digest);
  RawFile collected = RawFile::create(info.path + ".tokens.part");
  ::unlink(collected.path().c_str());
  file_ = std::make_unique<File>(File{std::move(info), std::move(collected)});
}

TokenShardWriter::~TokenShardWriter() = default;

void TokenShardWriter::append(std::span<const uint32_t> tokens) {
  File& f = *file_;
  assert(!f.is_closed);
  for (size_t begin = 0; begin < tokens.size(); begin += kBlockTokens) {
    const auto block = tokens.subspan(begin, std::min<size_t>(kBlockTokens, tokens.size() - begin));
    for (uint32_t token : block)
      check<DataError>(token < f.info.vocab_size, f.info.path, ": token ", token, " of document ", f.info.num_documents,
                       " is outside the vocabulary of ", f.info.vocab_size);
    if (f.info.token_bytes == 2) f.append_stored<uint16_t>(block);
    else f.append_stored<uint32_t>(block);
    f.info.num_tokens += static_cast<int64_t>(block.size());
    if (f.pending.size() >= kBlockTokens * sizeof(uint32_t)) f.flush();
  }
}

void TokenShardWriter::end_document() {
  const auto end = static_cast<uint32_t>(file_->info.end_of_document);
  append({&end, 1});
  file_->offsets.push_back(file_->info.num_tokens);
  ++file_->info.num_documents;
}

void TokenShardWriter::add_document(std::span<const uint32_t> tokens) {
  append(tokens);
  end_document();
}

void TokenShardWriter::set_source_digest(std::string digest) { file_->info.source_digest = std::move(digest); }

void TokenShardWriter::close() {
  File& f = *file_;
  assert(!f.is_closed && f.offsets.back() == f.info.num_tokens);
  f.is_closed = true;
  const std::string part = f.info.path + ".part";
  try {
    f.flush();
    const Positions at = lay_out(part, f.info);
    RawFile shard = RawFile::open_to_write(part);
    copy_bytes(f.collected, shard, f.collected_bytes, at.tokens);
    shard.write(f.offsets.data(), static_cast<int64_t>(8 * f.offsets.size()), at.offsets);
    shard.sync();
    std::error_code error;
    std::filesystem::rename(part, f.info.path, error);
    check<IoError>(!error, f.info.path, ": cannot be renamed from ", part, ": ", error.message());
    sync_folder_of(f.info.path);
  } catch (...) {
    ::unlink(part.c_str());
    throw;
  }
}

}  // namespace braid
