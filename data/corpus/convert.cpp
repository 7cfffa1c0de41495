#include "data/corpus/convert.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "data/corpus/dataset_writer.h"
#include "data/corpus/documents.h"
#include "data/corpus/foreign_tokens.h"
#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/sha256.h"

namespace braid {
namespace {

// piece(ids, is_end) for all tokens; without offsets they are one document.
template <class Piece>
void for_pieces(const ForeignTokens& tokens, Piece&& piece) {
  const std::array<int64_t, 2> one = {0, tokens.count};
  const auto offsets = tokens.offsets.empty() ? std::span<const int64_t>(one) : tokens.offsets;
  const auto read = [&](int64_t begin, int64_t end, std::vector<uint32_t>& ids) { tokens.read(begin, end, ids); };
  for_document_pieces(offsets, read, piece);
}

struct Scan {
  int64_t largest = 0;
  std::optional<int64_t> common_end;  // the id that every document ends with
};

Scan scan(const ForeignTokens& tokens) {
  Scan result;
  bool is_first = true;
  for_pieces(tokens, [&](std::span<const uint32_t> ids, bool is_end) {
    for (const uint32_t id : ids) result.largest = std::max<int64_t>(result.largest, id);
    if (!is_end) return;
    const std::optional<int64_t> last = ids.empty() ? std::nullopt : std::optional<int64_t>(ids.back());
    if (is_first) result.common_end = last;
    else if (result.common_end != last) result.common_end.reset();
    is_first = false;
  });
  return result;
}

void write_documents(const ForeignTokens& tokens, int64_t end_of_document, DatasetWriter& writer) {
  for_pieces(tokens, [&](std::span<const uint32_t> ids, bool is_end) {
    // The writer puts it there.
    if (is_end && !ids.empty() && ids.back() == end_of_document) ids = ids.first(ids.size() - 1);
    writer.append(ids);
    if (is_end) writer.end_document();
  });
}

void write_marked(const ForeignTokens& tokens, int64_t mark, DatasetWriter& writer) {
  bool is_inside = false, is_first = true;
  for_pieces(tokens, [&](std::span<const uint32_t> ids, bool) {
    for (size_t begin = 0; begin < ids.size();) {
      const auto found =
          std::find(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), static_cast<uint32_t>(mark));
      const auto at = static_cast<size_t>(found - ids.begin());
      writer.append(ids.subspan(begin, at - begin));
      is_inside |= at > begin;
      if (found == ids.end()) break;
      // A mark that begins the first document ends none.
      if (!(tokens.mark_begins && is_first && !is_inside)) writer.end_document(), is_inside = false;
      is_first = false;
      begin = at + 1;
      if (tokens.mark_begins) is_inside = true;
    }
    is_first = false;
  });
  if (is_inside) writer.end_document();
}

}  // namespace

DatasetManifest convert_tokens(const ConvertOptions& options) {
  ForeignTokens tokens = open_foreign_tokens(options.from, options.dtype);
  const std::string& path = tokens.path;
  check<DataError>(tokens.count > 0, path, ": holds no tokens");
  const Tokenizer* tokenizer = options.tokenizer;
  check<DataError>(!tokenizer || tokens.tokenizer_digest.empty() || tokenizer->digest() == tokens.tokenizer_digest,
                   path, ": was made with tokenizer ", tokens.tokenizer, " ", tokens.tokenizer_digest,
                   ", not with the ", tokenizer ? tokenizer->name() + " " + tokenizer->digest() : "", " that is named");
  const auto first_of = [](std::optional<int64_t> a, std::optional<int64_t> b) { return a ? a : b; };
  std::optional<int64_t> end = first_of(options.end_of_document, tokens.end_of_document);
  std::optional<int64_t> vocab_size = first_of(options.vocab_size, tokens.vocab_size);
  if (tokenizer) {
    end = first_of(end, tokenizer->end_of_document());
    vocab_size = first_of(vocab_size, tokenizer->vocab_size());
  }
  if (tokens.offsets.empty()) {
    if (!tokens.mark || options.end_of_document) tokens.mark = end;
    check<DataError>(tokens.mark.has_value(), path,
                     ": does not say where documents end; name the id that ends them with "
                     "--end-of-document");
    end = tokens.mark;
  }
  const auto [largest, common_end] = scan(tokens);
  if (!end) end = common_end;
  if (!end) end = largest + 1;

  DatasetManifest m;
  m.end_of_document = *end;
  m.vocab_size = vocab_size.value_or(std::max(largest, *end) + 1);
  check<DataError>(0 <= *end && *end < m.vocab_size && largest < m.vocab_size, path, ": token ",
                   std::max(largest, *end), " is outside the vocabulary of ", m.vocab_size);
  m.tokenizer = tokenizer ? tokenizer->name() : !tokens.tokenizer.empty() ? tokens.tokenizer : "unknown";
  m.tokenizer_digest = tokenizer                          ? tokenizer->digest()
                       : !tokens.tokenizer_digest.empty() ? tokens.tokenizer_digest
                                                          : sha256(concat("unknown ", m.vocab_size, ' ', *end));
  m.source_digest = sha256(concat(path, ' ', tokens.count));

  DurableFolder folder(options.to);
  if (tokenizer && !tokenizer->file().empty()) {
    m.tokenizer_file = "tokenizer.json";
    write_file_atomically((std::filesystem::path(folder.temporary()) / m.tokenizer_file).string(), tokenizer->file());
  }
  DatasetWriter writer(folder.temporary(), m, options.shard_tokens);
  if (!tokens.offsets.empty()) write_documents(tokens, *end, writer);
  else write_marked(tokens, *end, writer);
  writer.finish();
  folder.finish();
  return m;
}

}  // namespace braid
