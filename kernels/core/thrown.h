#pragma once

#include <exception>
#include <filesystem>
#include <new>
#include <system_error>

#include "kernels/core/error.h"

namespace braid {

// What an exception comes to: one of ours is itself, memory or a thread that the system refuses is "out of memory", a
// path that it does not follow (a folder closed to this user, a circle of links, a name too long) an input/output
// error, and all else a defect.
inline Error as_error(const std::exception& e) {
  if (const auto* own = dynamic_cast<const Error*>(&e)) return *own;
  if (dynamic_cast<const std::bad_alloc*>(&e)) return {ExitCode::kOutOfMemory, "out of memory"};
  const auto* system = dynamic_cast<const std::system_error*>(&e);
  if (system && system->code() == std::errc::not_enough_memory) return {ExitCode::kOutOfMemory, "out of memory"};
  if (const auto* path = dynamic_cast<const std::filesystem::filesystem_error*>(&e))
    return {ExitCode::kIo, concat(path->path1().string(), ": ", path->code().message())};
  if (system && system->code() == std::errc::resource_unavailable_try_again)
    return {ExitCode::kOutOfMemory, "out of memory: no thread can be started"};
  return {ExitCode::kInternal, concat("internal error: ", e.what())};
}

}  // namespace braid
