#pragma once

// The test program that includes this has system calls of its own, which fail, stop short, lie or kill the program on
// demand: those defined below take the place of the C library's. To be included by one file of a program.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>

namespace braid::testing {

// The `nth` call from now on fails, and with `forever` every one after it.
struct Fault {
  int64_t nth = 0;  // 0: none
  int error = EIO;
  bool forever = false;
  bool kills = false;  // instead of failing
  int64_t calls = 0;
};
inline Fault fault;
inline bool reserves_space = true;
inline int64_t short_writes = 0;  // 0: writes are whole. Else write that many bytes at a time, interrupted in between

// The `nth` read from now on gives a byte of another value, though the disk holds the right one.
inline int64_t flipped_read = 0, reads = 0;

inline bool call_fails() {
  if (fault.nth == 0) return false;
  const int64_t call = __atomic_add_fetch(&fault.calls, 1, __ATOMIC_RELAXED);  // of any thread
  if (fault.kills && call == fault.nth) ::kill(getpid(), SIGKILL);
  errno = fault.error;
  return call == fault.nth || (fault.forever && call > fault.nth);
}

}  // namespace braid::testing

extern "C" {

ssize_t pread(int fd, void* data, size_t bytes, off_t position) {
  using namespace braid::testing;
  const ssize_t n = syscall(SYS_pread64, fd, data, bytes, position);
  if (flipped_read > 0 && ++reads == flipped_read && n > 0) static_cast<char*>(data)[n / 2] ^= 16;
  return n;
}

ssize_t write(int fd, const void* data, size_t bytes) {
  using namespace braid::testing;
  if (call_fails()) return -1;
  static bool interrupted = false;
  if (short_writes > 0) {
    if ((interrupted = !interrupted)) return errno = EINTR, -1;
    bytes = std::min(bytes, static_cast<size_t>(short_writes));
  }
  return syscall(SYS_write, fd, data, bytes);
}
// Nobody cuts the power here, so it need not take its time.
int fsync(int) { return braid::testing::call_fails() ? -1 : 0; }
int posix_fallocate(int fd, off_t offset, off_t bytes) {
  using namespace braid::testing;
  if (!reserves_space) return EOPNOTSUPP;
  if (call_fails()) return fault.error;
  return syscall(SYS_fallocate, fd, 0, offset, bytes) == 0 ? 0 : errno;
}
int rename(const char* from, const char* to) noexcept {
  if (braid::testing::call_fails()) return -1;
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int mkdir(const char* path, mode_t mode) noexcept {
  return braid::testing::call_fails() ? -1 : static_cast<int>(syscall(SYS_mkdirat, AT_FDCWD, path, mode));
}

}  // extern "C"
