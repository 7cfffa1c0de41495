#include "data/corpus/foreign_tokens.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>

#include "data/corpus/hdf5_process.h"
#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

template <class T>
T value_at(const std::vector<char>& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <class T>
std::vector<T> read_array(const RawFile& file, int64_t position, int64_t count) {
  std::vector<T> values(count);
  file.read(values.data(), count * static_cast<int64_t>(sizeof(T)), position);
  return values;
}

std::vector<char> head_of(const RawFile& file, int64_t bytes) {
  return read_array<char>(file, 0, std::min(file.size(), bytes));
}

template <class Stored>
void read_stored(const RawFile& file, int64_t position, int64_t begin, int64_t end, int64_t* out) {
  const auto stored = read_array<Stored>(file, position + begin * static_cast<int64_t>(sizeof(Stored)), end - begin);
  std::copy(stored.begin(), stored.end(), out);
}

// Integers at a place of a file.
struct Plain {
  int64_t position = 0;
  int bytes = 2;
  bool is_signed = false;
};

auto reader_of(std::shared_ptr<const RawFile> file, Plain plain) {
  const auto read = plain.bytes == 1   ? read_stored<uint8_t>
                    : plain.bytes == 8 ? read_stored<int64_t>
                    : plain.is_signed  ? (plain.bytes == 2 ? read_stored<int16_t> : read_stored<int32_t>)
                                       : (plain.bytes == 2 ? read_stored<uint16_t> : read_stored<uint32_t>);
  return [=](int64_t begin, int64_t end, int64_t* out) { read(*file, plain.position, begin, end, out); };
}

ForeignTokens open_megatron(const std::string& index_path, const std::string& bin_path) {
  const RawFile index = RawFile::open(index_path);
  const auto bin = std::make_shared<const RawFile>(RawFile::open(bin_path));
  const std::string& path = index.path();
  constexpr int64_t kHeader = 9 + 8 + 1 + 8 + 8;
  check<DataError>(index.size() >= kHeader, path, ": has ", index.size(),
                   " bytes, too few for the header of a Megatron index");
  const std::vector<char> header = head_of(index, kHeader);
  check<DataError>(std::memcmp(header.data(), "MMIDIDX\0\0", 9) == 0, path, ": is no Megatron index");
  const auto version = value_at<uint64_t>(header, 9);
  check<DataError>(version == 1, path, ": has version ", version, ", expected 1");
  const auto code = static_cast<int>(value_at<uint8_t>(header, 17));
  Plain plain;
  switch (code) {
    case 1: plain.bytes = 1; break;
    case 3: plain.is_signed = true; break;
    case 4: plain.bytes = 4, plain.is_signed = true; break;
    case 5: plain.bytes = 8, plain.is_signed = true; break;
    case 8: break;
    default: throw DataError(concat(path, ": its tokens have type ", code, ", which are no ids"));
  }
  const auto num_sequences = value_at<int64_t>(header, 18), num_documents = value_at<int64_t>(header, 26);
  const int64_t room = index.size() - kHeader;
  // With one byte more for each sequence where it has modes.
  check<DataError>(
      0 <= num_sequences && num_sequences <= room / 12 && 1 <= num_documents && num_documents <= room / 8 &&
          (room == 12 * num_sequences + 8 * num_documents || room == 13 * num_sequences + 8 * num_documents),
      path, ": has ", index.size(), " bytes, which do not fit its ", num_sequences, " sequences and ", num_documents,
      " document marks");
  const auto lengths = read_array<int32_t>(index, kHeader, num_sequences);
  const auto pointers = read_array<int64_t>(index, kHeader + 4 * num_sequences, num_sequences);
  const auto documents = read_array<int64_t>(index, kHeader + 12 * num_sequences, num_documents);
  std::vector<int64_t> begins = {0};
  for (int64_t s = 0; s < num_sequences; ++s) {
    check<DataError>(lengths[s] >= 0 && pointers[s] == begins.back() * plain.bytes, path, ": sequence ", s, " has ",
                     lengths[s], " tokens at byte ", pointers[s], ", expected at byte ", begins.back() * plain.bytes);
    begins.push_back(begins.back() + lengths[s]);
  }
  ForeignTokens tokens{.path = bin_path, .count = begins.back()};
  check<DataError>(bin->size() == tokens.count * plain.bytes, bin_path, ": has ", bin->size(), " bytes, but ", path,
                   " names ", tokens.count, " tokens of ", plain.bytes);
  check<DataError>(
      documents.front() == 0 && documents.back() == num_sequences && std::is_sorted(documents.begin(), documents.end()),
      path, ": its document marks do not go up from 0 to its ", num_sequences, " sequences");
  for (const int64_t mark : documents) tokens.offsets.push_back(begins[mark]);
  tokens.read_values = reader_of(bin, plain);
  return tokens;
}

void check_offsets(const std::string& where, const ForeignTokens& tokens) {
  const auto& offsets = tokens.offsets;
  check<DataError>(offsets.size() >= 2 && offsets.front() == 0 && offsets.back() == tokens.count &&
                       std::is_sorted(offsets.begin(), offsets.end()),
                   where, ": the documents' offsets do not go up from 0 to the ", tokens.count, " tokens");
}

ForeignTokens open_datatrove(const std::string& path) {
  const auto file = std::make_shared<const RawFile>(RawFile::open(path));
  const RawFile index = RawFile::open(path + ".index");
  check<DataError>(index.size() % 8 == 0, index.path(), ": has ", index.size(), " bytes, no multiple of 8");
  ForeignTokens tokens{.path = path, .offsets = {0}};
  for (const int64_t end : read_array<int64_t>(index, 0, index.size() / 8)) tokens.offsets.push_back(end);
  tokens.count = tokens.offsets.back();
  check_offsets(index.path(), tokens);
  const bool is_u16 = file->size() % 2 == 0 && file->size() / 2 == tokens.count;
  check<DataError>(is_u16 || (file->size() % 4 == 0 && file->size() / 4 == tokens.count), path, ": has ", file->size(),
                   " bytes, but ", index.path(), " names ", tokens.count, " tokens, of 2 or 4");
  tokens.read_values = reader_of(file, {.bytes = is_u16 ? 2 : 4});
  return tokens;
}

ForeignTokens open_hdf5(const std::string& path) {
  const auto file = std::make_shared<Hdf5Process>(path);
  ForeignTokens tokens{.path = path};
  const auto size = file->size("tokens");
  check<DataError>(size.has_value(), path, ": has no dataset tokens");
  tokens.count = *size;
  if (const auto count = file->size("document_offsets")) {
    constexpr int64_t kAtOnce = 1 << 16;
    tokens.offsets.resize(*count);
    for (int64_t begin = 0; begin < *count; begin += kAtOnce)
      file->read("document_offsets", begin, std::min(begin + kAtOnce, *count), tokens.offsets.data() + begin);
    check_offsets(path, tokens);
  }
  tokens.vocab_size = file->integer("vocab_size");
  tokens.end_of_document = file->integer("end_of_document");
  tokens.tokenizer = file->text("tokenizer").value_or("");
  tokens.tokenizer_digest = file->text("tokenizer_digest").value_or("");
  if (tokens.offsets.empty()) tokens.mark = tokens.end_of_document;
  tokens.read_values = [file](int64_t begin, int64_t end, int64_t* out) { file->read("tokens", begin, end, out); };
  return tokens;
}

// What numpy says in front of an array.
Plain parse_numpy(const std::string& path, const std::vector<char>& head, int64_t& count) {
  const size_t begin = head[6] >= 2 ? 12 : 10;
  check<DataError>(head.size() > begin, path, ": is cut short");
  const size_t bytes = head[6] >= 2 ? value_at<uint32_t>(head, 8) : value_at<uint16_t>(head, 8);
  check<DataError>(begin + bytes <= head.size(), path, ": its numpy header of ", bytes,
                   " bytes is longer than a 1-D array needs");
  const std::string text(head.data() + begin, bytes);
  const bool is_u16 = text.find("'<u2'") != text.npos, is_u32 = text.find("'<u4'") != text.npos;
  const size_t shape = text.find("'shape': (");
  check<DataError>(
      (is_u16 || is_u32) && shape != text.npos && text.substr(shape, text.find(')', shape) - shape).ends_with(","),
      path, ": expected a 1-D array of <u2 or <u4, found ", text.substr(0, text.find('\n')));
  count = std::strtoll(text.c_str() + shape + 10, nullptr, 10);
  return {.position = static_cast<int64_t>(begin + bytes), .bytes = is_u16 ? 2 : 4};
}

ForeignTokens open_marked(const std::string& path, const std::string& dtype) {
  const auto file = std::make_shared<const RawFile>(RawFile::open(path));
  const std::vector<char> head = head_of(*file, 1024);
  ForeignTokens tokens{.path = path};
  Plain plain;
  const auto magic = head.size() >= 12 ? value_at<int32_t>(head, 0) : 0;
  if (magic == 20240520 || magic == 20240801) {
    check<DataError>(head.size() == 1024, path, ": has ", file->size(), " bytes, too few for the header of llm.c");
    const auto version = value_at<int32_t>(head, 4);
    const bool is_llama = magic == 20240801;
    check<DataError>(version == (is_llama ? 7 : 1), path, ": has version ", version, " of llm.c's format, expected ",
                     is_llama ? 7 : 1);
    plain = {.position = 1024, .bytes = is_llama ? 4 : 2};
    tokens.count = value_at<int32_t>(head, 8);
    tokens.mark = is_llama ? 128000 : 50256;
    tokens.mark_begins = true;
  } else if (head.size() >= 10 && std::memcmp(head.data(), "\x93NUMPY", 6) == 0) {
    plain = parse_numpy(path, head, tokens.count);
  } else {
    check<DataError>(
        dtype == "u16" || dtype == "u32", path,
        ": is neither HDF5's, Megatron's, datatrove's, llm.c's nor numpy's; for raw tokens say --dtype u16 or u32");
    plain.bytes = dtype == "u16" ? 2 : 4;
    check<DataError>(file->size() % plain.bytes == 0, path, ": has ", file->size(), " bytes, no multiple of ",
                     plain.bytes);
    tokens.count = file->size() / plain.bytes;
  }
  const int64_t room = file->size() - plain.position;
  check<DataError>(tokens.count >= 0 && room % plain.bytes == 0 && tokens.count == room / plain.bytes, path, ": has ",
                   file->size(), " bytes, but its header says ", tokens.count, " tokens of ", plain.bytes);
  tokens.read_values = reader_of(file, plain);
  return tokens;
}

bool is_hdf5(const std::string& path) {
  const RawFile file = RawFile::open(path);  // what is none is named by us, not by libhdf5
  const std::string ending = fs::path(path).extension().string();
  if (ending == ".h5" || ending == ".hdf5") return true;
  const std::vector<char> head = head_of(file, 8);
  return head.size() == 8 && std::memcmp(head.data(), "\x89HDF\r\n\x1a\n", 8) == 0;
}

}  // namespace

void ForeignTokens::read(int64_t begin, int64_t end, std::vector<uint32_t>& ids) const {
  std::vector<int64_t> values(end - begin);
  read_values(begin, end, values.data());
  ids.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    check<DataError>(0 <= values[i] && values[i] < UINT32_MAX, path, ": token ", begin + static_cast<int64_t>(i),
                     " is ", values[i] < 0 ? "negative" : "too large for an id");
    ids[i] = static_cast<uint32_t>(values[i]);
  }
}

ForeignTokens open_foreign_tokens(const std::string& path, const std::string& dtype) {
  const fs::path name = path, index = fs::path(path).replace_extension(".idx"),
                 bin = fs::path(path).replace_extension(".bin");
  if (name.extension() == ".idx" || (name.extension() == ".bin" && fs::exists(index))) return open_megatron(index, bin);
  if (fs::exists(path + ".index")) return open_datatrove(path);
  return is_hdf5(path) ? open_hdf5(path) : open_marked(path, dtype);
}

}  // namespace braid
