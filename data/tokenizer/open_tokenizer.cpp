#include "data/tokenizer/bpe_tokenizer.h"
#include "data/tokenizer/tokenizer.h"
#include "kernels/core/error.h"
#include "kernels/core/raw_file.h"

namespace braid {

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& name, const std::string& end_of_document) {
  if (name == "bytes") {
    check<DataError>(end_of_document.empty(),
                     "the tokenizer of bytes ends documents with <|endoftext|>; no other token can "
                     "be chosen");
    return std::make_unique<ByteTokenizer>();
  }
  const RawFile file = RawFile::open(name);
  constexpr int64_t kLargest = int64_t{1} << 30;
  check<DataError>(file.size() <= kLargest, name, ": has ", file.size(), " bytes, too many for a tokenizer.json");
  std::string json(file.size(), '\0');
  file.read(json.data(), file.size(), 0);
  return std::make_unique<BpeTokenizer>(name, std::move(json), end_of_document);
}

}  // namespace braid
