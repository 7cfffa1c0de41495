#include "trainer/starting_weights.h"

#include <algorithm>

#include "parallel/rank_text.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/config/config_reader.h"
#include "trainer/huggingface/huggingface_reader.h"

namespace braid {
namespace {

bool is_of_mtp(const Parameter& p) { return p.name.starts_with("mtp."); }

// A row per token: the embedding and the head.
bool is_of_vocabulary(const Parameter& p) {
  return p.name == "model.embed_tokens.weight" || p.name == "lm_head.weight";
}

const Parameter& first_of(const std::vector<Parameter>& table, bool (*wanted)(const Parameter&)) {
  return *std::find_if(table.begin(), table.end(), wanted);
}

}  // namespace

StoredModel open_stored_model(Context& ctx, Communicator& world, const std::string& from) {
  StoredModel stored;
  if (!from.starts_with(kHuggingFacePrefix)) {
    auto reader = std::make_unique<CheckpointReader>(open_checkpoint(ctx, world, from));
    stored.config = read_config_text(reader->info().config_yaml, reader->path());
    stored.name = concat(reader->path(), ", after step ", reader->info().step);
    stored.weights = std::move(reader);
    return stored;
  }
  std::unique_ptr<HuggingFaceReader> reader;
  all_or_none(ctx, world, [&] {
    reader = std::make_unique<HuggingFaceReader>(from.substr(kHuggingFacePrefix.size()));
    return std::string();
  });
  stored.config.model = reader->config();
  stored.name = concat(reader->path(), ", ", reader->total_bytes() >> 20, " MiB in the Hugging Face format");
  stored.weights = std::move(reader);
  return stored;
}

StartingWeights::StartingWeights(const WeightSource& source, const RunConfig& config)
    : source_(source), initial_(config.model, config.init, static_cast<uint64_t>(config.train.seed)) {
  const std::vector<Parameter> table = parameter_table(config.model, config.mtp);
  if (config.mtp.on() && !source.stored_shape(first_of(table, is_of_mtp))) {
    check<CheckpointError>(config.init.fresh_mtp, source.path(), ": holds no MTP block (mtp.*), but this run trains ",
                           "one: set init.fresh_mtp=true for a new one, or mtp.depth=0");
    new_mtp_ = true;
    notes_.push_back("the MTP block is new: " + source.path() + " holds none");
  }
  const auto shape = source.stored_shape(first_of(table, is_of_vocabulary));
  vocabulary_ = shape ? (*shape)[0] : config.model.vocab_size;
  if (const int64_t tokens = config.model.vocab_size; vocabulary_ != tokens) {
    check<CheckpointError>(config.init.resize_vocabulary, source.path(), ": its vocabulary has ", vocabulary_,
                           " tokens, this model's (model.vocab_size) ", tokens,
                           ": set init.resize_vocabulary=true to begin with another one");
    notes_.push_back(vocabulary_ < tokens
                         ? concat("tokens ", vocabulary_, " to ", tokens - 1, " of the vocabulary are new")
                         : concat("tokens ", tokens, " to ", vocabulary_ - 1, " of ", source.path(), " are left out"));
  }
}

bool StartingWeights::is_new(const Parameter& p) const { return new_mtp_ && is_of_mtp(p); }

void StartingWeights::read_weights(const Parameter& p, int64_t begin, int64_t end, Tensor out) const {
  if (is_new(p)) return initial_.read_weights(p, begin, end, out);
  if (!is_of_vocabulary(p)) return source_.read_weights(p, begin, end, out);
  // Rows are whole in both, so an element has the same index.
  Parameter stored = p;
  stored.shape = {vocabulary_, p.shape[1]};
  const int64_t known = std::clamp(stored.shape.numel(), begin, end) - begin;
  const Tensor flat = out.view({end - begin});
  if (known > 0) source_.read_weights(stored, begin, begin + known, flat.rows(0, known));
  if (known < end - begin) initial_.read_weights(p, begin + known, end, flat.rows(known, end - begin));
}

bool StartingWeights::make_on_gpu(Context& ctx, const Parameter& p, int64_t begin, Tensor out) const {
  return is_new(p) && initial_.make_on_gpu(ctx, p, begin, out);
}

}  // namespace braid
