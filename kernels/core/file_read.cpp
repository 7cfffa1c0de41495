#include "kernels/core/file_read.h"

#include <mutex>

#include "kernels/core/error.h"
#include "kernels/core/process_info.h"

namespace braid {
namespace {

// All that are under way, in the order in which they began.
std::mutex mutex;
FileRead *newest = nullptr, *oldest = nullptr;

}  // namespace

FileRead::FileRead(const char* what, const std::string& path, int64_t bytes, int64_t position)
    : what_(what), path_(path), bytes_(bytes), position_(position) {
  const std::scoped_lock lock(mutex);
  begin_ns_ = now_ns();
  behind_ = newest;
  (newest ? newest->before_ : oldest) = this;
  newest = this;
}

FileRead::~FileRead() {
  const std::scoped_lock lock(mutex);
  (before_ ? before_->behind_ : newest) = behind_;
  (behind_ ? behind_->before_ : oldest) = before_;
}

std::optional<PendingRead> longest_read() {
  const std::scoped_lock lock(mutex);
  if (!oldest) return std::nullopt;
  const FileRead& call = *oldest;
  std::string what = call.what_;
  if (call.bytes_ > 0) what += concat(" ", call.bytes_, " bytes at byte ", call.position_);
  return PendingRead{call.path_, std::move(what), call.begin_ns_, double(now_ns() - call.begin_ns_) / 1e9};
}

}  // namespace braid
