#include "parallel/rank_text.h"

#include <algorithm>
#include <new>

namespace braid {
namespace {

constexpr char kDone = 'd', kFailed = 'f';

// What one rank reports: kDone and its result, or kFailed, the exit code as one byte, and the message.
std::string outcome_of(const std::function<std::string()>& work) {
  auto failed = [](ExitCode code, const std::string& message) {
    return std::string{kFailed, static_cast<char>(code)} + message;
  };
  try {
    return kDone + work();
  } catch (const Error& e) {
    return failed(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return failed(ExitCode::kOutOfMemory, "out of memory");
  } catch (const std::exception& e) {
    return failed(ExitCode::kInternal, concat("internal error: ", e.what()));
  }
}

[[noreturn]] void throw_error(ExitCode code, const std::string& message) {
  if (code == ExitCode::kCheckpoint) throw CheckpointError(message);
  if (code == ExitCode::kIo) throw IoError(message);
  throw Error(code, message);
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

std::vector<std::string> all_or_none(Context& ctx, Communicator& world, const std::function<std::string()>& work) {
  std::vector<std::string> results = gather_text(ctx, world, outcome_of(work));
  for (int rank = 0; rank < world.size(); ++rank) {
    std::string& result = results[rank];
    if (result[0] == kFailed) {
      const std::string where = world.size() > 1 ? concat(" (on rank ", rank, ")") : "";
      throw_error(static_cast<ExitCode>(result[1]), result.substr(2) + where);
    }
    result.erase(0, 1);
  }
  return results;
}

}  // namespace braid
