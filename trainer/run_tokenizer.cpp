#include "trainer/run_tokenizer.h"

#include <filesystem>
#include <sstream>

#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/file_text.h"
#include "kernels/core/sha256.h"
#include "kernels/core/stream.h"

namespace braid {

namespace fs = std::filesystem;

void store_run_tokenizer(const std::vector<TokenDataset>& data, const std::string& run_dir) {
  const ShardInfo& info = data.front().shards().front().info();
  write_file_atomically((fs::path(run_dir) / "tokenizer.txt").string(),
                        concat(info.tokenizer, ' ', info.tokenizer_digest, ' ', info.end_of_document, '\n'));
  for (const TokenDataset& source : data)
    for (const TokenShard& shard : source.shards()) {
      const std::string text = file_text((fs::path(shard.info().path).parent_path() / "tokenizer.json").string());
      if (text.empty() || sha256(text) != info.tokenizer_digest) continue;
      write_file_atomically((fs::path(run_dir) / "tokenizer.json").string(), text);
      return;
    }
}

std::unique_ptr<Tokenizer> run_tokenizer(const std::string& checkpoint) {
  // <run.dir>/checkpoints/step-...
  const fs::path run = fs::weakly_canonical(checkpoint).parent_path().parent_path();
  Loud<std::istringstream> described(file_text((run / "tokenizer.txt").string()));
  std::string name, digest, end;
  if (!(described >> name >> digest >> end) || digest == ByteTokenizer().digest())
    return std::make_unique<ByteTokenizer>();
  const std::string path = (run / "tokenizer.json").string();
  check<DataError>(fs::exists(path), path, ": is missing; the run was trained on tokens of tokenizer ", name,
                   " with digest ", digest, ", whose tokenizer.json belongs there");
  auto tokenizer = open_tokenizer(path, "#" + end);
  check<DataError>(tokenizer->digest() == digest, path, ": has digest ", tokenizer->digest(),
                   ", but the run's data has ", digest);
  return tokenizer;
}

}  // namespace braid
