#include "data/corpus/convert.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <vector>

#include "data/token_shard.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlockTokens = int64_t{1} << 16;

// Integers at a place of a file.
struct Tokens {
  const RawFile* file;
  int64_t position = 0, count = 0;
  int bytes = 2;
  bool is_signed = false;

  // Tokens [begin, end) as ids.
  void read(int64_t begin, int64_t end, std::vector<uint32_t>& out) const {
    const auto n = static_cast<size_t>(end - begin);
    std::vector<char> stored(n * bytes);
    file->read(stored.data(), static_cast<int64_t>(stored.size()), position + begin * bytes);
    out.resize(n);
    for (size_t i = 0; i < n; ++i) {
      uint64_t value = 0;
      std::memcpy(&value, stored.data() + i * bytes, bytes);
      const bool is_negative = is_signed && value >> (8 * bytes - 1) != 0;
      check<DataError>(!is_negative && value < UINT32_MAX, file->path(), ": token ", begin + static_cast<int64_t>(i), " is ",
                       is_negative ? "negative" : "too large for an id");
      out[i] = static_cast<uint32_t>(value);
    }
  }
};

// What a file holds: documents [offsets[d], offsets[d + 1]) of the tokens, or, without offsets, an id that parts them.
struct Source {
  Tokens tokens;
  std::vector<int64_t> offsets;
  std::optional<int64_t> mark;
  bool mark_begins = false;  // the mark stands in front of a document
};

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

Source open_megatron(const RawFile& index, const RawFile& bin) {
  const std::string& path = index.path();
  constexpr int64_t kHeader = 9 + 8 + 1 + 8 + 8;
  check<DataError>(index.size() >= kHeader, path, ": has ", index.size(), " bytes, too few for the header of a Megatron index");
  std::vector<char> header(kHeader);
  index.read(header.data(), kHeader, 0);
  check<DataError>(std::memcmp(header.data(), "MMIDIDX\0\0", 9) == 0, path, ": is no Megatron index");
  const auto version = value_at<uint64_t>(header, 9);
  check<DataError>(version == 1, path, ": has version ", version, ", expected 1");
  const auto code = static_cast<int>(value_at<uint8_t>(header, 17));
  Source source;
  Tokens& tokens = source.tokens;
  tokens.file = &bin;
  switch (code) {
    case 1: tokens.bytes = 1; break;
    case 3: tokens.bytes = 2, tokens.is_signed = true; break;
    case 4: tokens.bytes = 4, tokens.is_signed = true; break;
    case 5: tokens.bytes = 8, tokens.is_signed = true; break;
    case 8: tokens.bytes = 2; break;
    default: throw DataError(concat(path, ": its tokens have type ", code, ", which are no ids"));
  }
  const auto num_sequences = value_at<int64_t>(header, 18), num_documents = value_at<int64_t>(header, 26);
  const int64_t room = index.size() - kHeader;
  // With one byte more for each sequence where it has modes.
  check<DataError>(0 <= num_sequences && num_sequences <= room / 12 && 1 <= num_documents && num_documents <= room / 8 &&
                       (room == 12 * num_sequences + 8 * num_documents || room == 13 * num_sequences + 8 * num_documents),
                   path, ": has ", index.size(), " bytes, which do not fit its ", num_sequences, " sequences and ", num_documents,
                   " document marks");
  const auto lengths = read_array<int32_t>(index, kHeader, num_sequences);
  const auto pointers = read_array<int64_t>(index, kHeader + 4 * num_sequences, num_sequences);
  const auto documents = read_array<int64_t>(index, kHeader + 12 * num_sequences, num_documents);
  std::vector<int64_t> begins = {0};
  for (int64_t s = 0; s < num_sequences; ++s) {
    check<DataError>(lengths[s] >= 0 && pointers[s] == begins.back() * tokens.bytes, path, ": sequence ", s, " has ", lengths[s],
                     " tokens at byte ", pointers[s], ", expected at byte ", begins.back() * tokens.bytes);
    begins.push_back(begins.back() + lengths[s]);
  }
  tokens.count = begins.back();
  check<DataError>(bin.size() == tokens.count * tokens.bytes, bin.path(), ": has ", bin.size(), " bytes, but ", path, " names ",
                   tokens.count, " tokens of ", tokens.bytes);
  check<DataError>(documents.front() == 0 && documents.back() == num_sequences && std::is_sorted(documents.begin(), documents.end()),
                   path, ": its document marks do not go up from 0 to its ", num_sequences, " sequences");
  for (int64_t mark : documents) source.offsets.push_back(begins[mark]);
  return source;
}

Source open_marked(const RawFile& file, const ConvertOptions& options) {
  const std::string& path = file.path();
  Source source;
  Tokens& tokens = source.tokens;
  tokens.file = &file;
  source.mark = options.end_of_document;
  std::vector<char> head(std::min<int64_t>(file.size(), 1024));
  file.read(head.data(), static_cast<int64_t>(head.size()), 0);
  const auto magic = head.size() >= 12 ? value_at<int32_t>(head, 0) : 0;
  if (magic == 20240520 || magic == 20240801) {
    check<DataError>(head.size() == 1024, path, ": has ", file.size(), " bytes, too few for the header of llm.c");
    const auto version = value_at<int32_t>(head, 4), count = value_at<int32_t>(head, 8);
    const bool is_llama = magic == 20240801;
    check<DataError>(version == (is_llama ? 7 : 1), path, ": has version ", version, " of llm.c's format, expected ", is_llama ? 7 : 1);
    tokens.position = 1024;
    tokens.bytes = is_llama ? 4 : 2;
    tokens.count = count;
    if (!source.mark) source.mark = is_llama ? 128000 : 50256;
    source.mark_begins = true;
  } else if (head.size() >= 10 && std::memcmp(head.data(), "\x93NUMPY", 6) == 0) {
    const bool is_long = head[6] >= 2;
    const size_t begin = is_long ? 12 : 10;
    check<DataError>(head.size() > begin, path, ": is cut short");
    const size_t bytes = is_long ? value_at<uint32_t>(head, 8) : value_at<uint16_t>(head, 8);
    check<DataError>(begin + bytes <= head.size(), path, ": its numpy header of ", bytes, " bytes is longer than a 1-D array needs");
    const std::string text(head.data() + begin, bytes);
    const bool is_u16 = text.find("'<u2'") != text.npos, is_u32 = text.find("'<u4'") != text.npos;
    const size_t shape = text.find("'shape': (");
    check<DataError>((is_u16 || is_u32) && shape != text.npos && text.substr(shape, text.find(')', shape) - shape).ends_with(","),
                     path, ": expected a 1-D array of <u2 or <u4, found ", text.substr(0, text.find('\n')));
    tokens.position = static_cast<int64_t>(begin + bytes);
    tokens.bytes = is_u16 ? 2 : 4;
    tokens.count = std::strtoll(text.c_str() + shape + 10, nullptr, 10);
  } else {
    check<DataError>(options.dtype == "u16" || options.dtype == "u32", path,
                     ": is neither Megatron's, llm.c's nor numpy's; for raw tokens say --dtype u16 or u32");
    tokens.bytes = options.dtype == "u16" ? 2 : 4;
    check<DataError>(file.size() % tokens.bytes == 0, path, ": has ", file.size(), " bytes, no multiple of ", tokens.bytes);
    tokens.count = file.size() / tokens.bytes;
  }
  check<DataError>(tokens.count >= 0 && file.size() == tokens.position + tokens.count * tokens.bytes, path, ": has ", file.size(),
                   " bytes, but its header says ", tokens.count, " tokens of ", tokens.bytes);
  check<DataError>(source.mark.has_value(), path, ": does not say where documents end; name the id that ends them with "
                   "--end-of-document");
  return source;
}

// block(tokens) for all tokens from front to back.
void for_blocks(const Tokens& tokens, const std::function<void(const std::vector<uint32_t>&)>& block) {
  std::vector<uint32_t> ids;
  for (int64_t begin = 0; begin < tokens.count; begin += kBlockTokens) {
    tokens.read(begin, std::min(begin + kBlockTokens, tokens.count), ids);
    block(ids);
  }
}

class DatasetWriter {
 public:
  DatasetWriter(std::string folder, DatasetManifest manifest, int64_t shard_tokens)
      : folder_(std::move(folder)), manifest_(std::move(manifest)), shard_tokens_(shard_tokens) {}

  void append(std::span<const uint32_t> tokens) {
    if (!shard_) {
      std::string number = std::to_string(manifest_.shards.size());
      name_ = concat("shard-", std::string(number.size() < 5 ? 5 - number.size() : 0, '0'), number, ".h5");
      shard_ = std::make_unique<TokenShardWriter>((fs::path(folder_) / name_).string(), manifest_.vocab_size,
                                                  manifest_.end_of_document, manifest_.tokenizer, manifest_.tokenizer_digest);
    }
    shard_->append(tokens);
    tokens_ += static_cast<int64_t>(tokens.size());
  }
  void end_document() {
    append({});
    shard_->end_document();
    if (++tokens_ >= shard_tokens_) close_shard();
  }
  DatasetManifest finish() {
    close_shard();
    write_manifest(folder_, manifest_);
    return manifest_;
  }

 private:
  void close_shard() {
    if (!shard_) return;
    shard_->close();
    shard_.reset();
    tokens_ = 0;
    manifest_.shards.push_back(describe_shard(folder_, name_));
  }
  std::string folder_, name_;
  DatasetManifest manifest_;
  int64_t shard_tokens_, tokens_ = 0;
  std::unique_ptr<TokenShardWriter> shard_;
};

// The id that every document ends with, if there is one.
std::optional<int64_t> common_end(const Source& source) {
  std::optional<int64_t> end;
  std::vector<uint32_t> last;
  for (size_t d = 0; d + 1 < source.offsets.size(); ++d) {
    if (source.offsets[d] == source.offsets[d + 1]) return {};
    source.tokens.read(source.offsets[d + 1] - 1, source.offsets[d + 1], last);
    if (end && *end != last[0]) return {};
    end = last[0];
  }
  return end;
}

}  // namespace

DatasetManifest convert_tokens(const ConvertOptions& options) {
  const fs::path named = options.from;
  const bool is_megatron = named.extension() == ".idx" ||
                           (named.extension() == ".bin" && fs::exists(fs::path(named).replace_extension(".idx")));
  const RawFile file = RawFile::open(is_megatron ? fs::path(named).replace_extension(".bin").string() : options.from);
  std::optional<RawFile> index;
  if (is_megatron) index.emplace(RawFile::open(fs::path(named).replace_extension(".idx").string()));
  ConvertOptions wanted = options;
  if (options.tokenizer) {
    if (!wanted.end_of_document) wanted.end_of_document = options.tokenizer->end_of_document();
    if (!wanted.vocab_size) wanted.vocab_size = options.tokenizer->vocab_size();
  }
  const Source source = is_megatron ? open_megatron(*index, file) : open_marked(file, wanted);
  check<DataError>(source.tokens.count > 0, file.path(), ": holds no tokens");

  int64_t largest = 0;
  for_blocks(source.tokens, [&](const std::vector<uint32_t>& ids) {
    largest = std::max<int64_t>(largest, *std::max_element(ids.begin(), ids.end()));
  });
  std::optional<int64_t> end = source.mark ? source.mark : wanted.end_of_document;
  if (!end) end = common_end(source);
  if (!end) end = largest + 1;
  DatasetManifest m;
  m.end_of_document = *end;
  m.vocab_size = wanted.vocab_size.value_or(std::max(largest, *end) + 1);
  check<DataError>(0 <= *end && *end < m.vocab_size && largest < m.vocab_size, file.path(), ": token ", std::max(largest, *end),
                   " is outside the vocabulary of ", m.vocab_size);
  m.tokenizer = options.tokenizer ? options.tokenizer->name() : "unknown";
  m.tokenizer_digest = options.tokenizer ? options.tokenizer->digest() : sha256(concat("unknown ", m.vocab_size, ' ', *end));
  m.source_digest = sha256(concat(file.path(), ' ', file.size()));

  create_folder(options.to);
  check<IoError>(fs::is_empty(options.to), options.to, ": the folder is not empty");
  if (options.tokenizer && !options.tokenizer->file().empty()) {
    m.tokenizer_file = "tokenizer.json";
    write_file_atomically((fs::path(options.to) / m.tokenizer_file).string(), options.tokenizer->file());
  }
  DatasetWriter writer(options.to, m, options.shard_tokens);
  if (!source.offsets.empty()) {
    std::vector<uint32_t> ids;
    for (size_t d = 0; d + 1 < source.offsets.size(); ++d) {
      const int64_t stop = source.offsets[d + 1];
      for (int64_t begin = source.offsets[d]; begin < stop; begin += kBlockTokens) {
        const int64_t block_end = std::min(begin + kBlockTokens, stop);
        source.tokens.read(begin, block_end, ids);
        if (block_end == stop && ids.back() == *end) ids.pop_back();  // the writer puts it behind every document
        writer.append(ids);
      }
      writer.end_document();
    }
    return writer.finish();
  }
  bool is_inside = false, is_first = true;
  for_blocks(source.tokens, [&](const std::vector<uint32_t>& ids) {
    for (size_t begin = 0; begin < ids.size();) {
      const auto mark = std::find(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), static_cast<uint32_t>(*end));
      const auto at = static_cast<size_t>(mark - ids.begin());
      writer.append(std::span(ids).subspan(begin, at - begin));
      is_inside |= at > begin;
      begin = at;
      if (mark == ids.end()) break;
      // A mark that begins the first document ends none.
      if (!(source.mark_begins && is_first && !is_inside)) writer.end_document(), is_inside = false;
      is_first = false;
      ++begin;
      if (source.mark_begins) is_inside = true;
    }
    is_first = false;
  });
  if (is_inside) writer.end_document();
  return writer.finish();
}

}  // namespace braid
