#include "parallel/rank_text.h"

#include <algorithm>

#include "kernels/core/thrown.h"

namespace braid {
namespace {

constexpr char kDone = 'd', kFailed = 'f';

// What one rank reports: kDone and its result, or kFailed, the exit code as one byte, and the message.
std::string outcome_of(const std::function<std::string()>& work) {
  try {
    return kDone + work();
  } catch (const std::exception& e) {
    const Error error = as_error(e);
    return std::string{kFailed, static_cast<char>(error.code())} + error.what();
  }
}

// The error that `outcome` reports, with `where` behind its message.
[[noreturn]] void throw_error(const std::string& outcome, const std::string& where) {
  const auto code = static_cast<ExitCode>(outcome[1]);
  const std::string message = outcome.substr(2) + where;
  if (code == ExitCode::kCheckpoint) throw_on_every_rank(CheckpointError(message));
  if (code == ExitCode::kIo) throw_on_every_rank(IoError(message));
  throw_on_every_rank(Error(code, message));
}

}  // namespace

std::vector<std::string> gather_text(Context& ctx, Communicator& world, const std::string& text) {
  const int64_t size = world.size();
  int64_t length = static_cast<int64_t>(text.size());
  std::vector<int64_t> lengths(size);
  world.all_gather(ctx, Tensor::of(lengths.data(), {size}), Tensor::of(&length, {1}));
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<uint8_t> own(text.begin(), text.end()), all(longest * size);
  own.resize(longest);
  world.all_gather(ctx, Tensor::of(all.data(), {longest * size}), Tensor::of(own.data(), {longest}));
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < size; ++rank) {
    const auto begin = all.begin() + rank * longest;
    texts.emplace_back(begin, begin + lengths[rank]);
  }
  return texts;
}

std::string broadcast_text(Context& ctx, Communicator& world, const std::string& text) {
  int64_t length = static_cast<int64_t>(text.size());
  world.broadcast(ctx, Tensor::of(&length, {1}), 0);
  std::vector<uint8_t> bytes(text.begin(), text.end());
  bytes.resize(length);
  world.broadcast(ctx, Tensor::of(bytes.data(), {length}), 0);
  return {bytes.begin(), bytes.end()};
}

std::vector<std::string> all_or_none(Context& ctx, Communicator& world, const std::function<std::string()>& work) {
  std::vector<std::string> results = gather_text(ctx, world, outcome_of(work));
  const auto failure = std::find_if(results.begin(), results.end(), [](const auto& r) { return r[0] == kFailed; });
  if (failure != results.end()) {
    std::vector<int> ranks;
    for (int rank = 0; rank < world.size(); ++rank)
      if (results[rank] == *failure) ranks.push_back(rank);
    const bool everywhere = static_cast<int>(ranks.size()) == world.size();
    throw_error(*failure, everywhere ? "" : concat(" (on ", rank_list(ranks), ")"));
  }
  for (std::string& result : results) result.erase(0, 1);
  return results;
}

std::string from_first_rank(Context& ctx, Communicator& world, const std::function<std::string()>& work) {
  const std::string outcome = broadcast_text(ctx, world, world.rank() == 0 ? outcome_of(work) : "");
  if (outcome[0] == kFailed) throw_error(outcome, "");
  return outcome.substr(1);
}

std::string rank_list(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    text += concat(i > 0 ? ", " : "", ranks[i]);
    if (last > i) text += concat(last > i + 1 ? "-" : ", ", ranks[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace braid
