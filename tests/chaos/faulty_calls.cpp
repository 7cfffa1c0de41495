// System calls that fail or kill on demand, for a whole program: LD_PRELOAD puts them before the C library's. The
// environment says
//   BRAID_CALLS="rank=1,on=change,nth=17,times=1,do=kill"
// which rank of the launcher; which calls of it that have to do with checkpoints (where=TEXT: with paths that hold it):
// `change` creates, reserves, writes, flushes, renames and removes, `read` opens and reads; at which of them, and how
// many from there on; `kill`, `wait=SECONDS`, or the number of an error (28: no space). on=memory,nth=N: the Nth
// request of at least 4 KiB (least=BYTES) of host memory, by the program or the C++ library, finds none left; with
// frames=N requests count that come from where none came from before: another chain of the N innermost functions of the
// program itself; on=delay: delays of no time, as BRAID_FAULT's do=delay=0 makes them at its sites.
// mark=PATH: this file is made when there was such a call, and with nth=0 in the end, with the number of calls.
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <unwind.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

namespace {

struct Plan {
  bool on_change = false, on_read = false, on_memory = false, on_delay = false;
  size_t frames = 0;    // of which chains of functions; 0: all requests
  size_t least = 4096;  // bytes; also what reading the plan takes
  long nth = 0, times = 1;
  int error = 0;   // 0: kill
  int wait_s = 0;  // then the call is done
  std::string where = "checkpoints";
  std::string mark;
};

std::string value_of(const std::string& text, const std::string& name) {
  const size_t at = ("," + text).find("," + name + "=");
  if (at == text.npos) return "";
  const size_t begin = at + name.size() + 1;
  return text.substr(begin, text.find(',', begin) - begin);
}

Plan read_plan() {
  const char *text = std::getenv("BRAID_CALLS"), *rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (!text || value_of(text, "rank") != (rank ? rank : "0")) return {};
  Plan plan;
  const std::string on = value_of(text, "on");
  (on == "read"     ? plan.on_read
   : on == "memory" ? plan.on_memory
   : on == "delay"  ? plan.on_delay
                    : plan.on_change) = true;
  plan.nth = std::atol(value_of(text, "nth").c_str());
  if (const std::string times = value_of(text, "times"); !times.empty()) plan.times = std::atol(times.c_str());
  if (const std::string deed = value_of(text, "do"); deed.rfind("wait=", 0) == 0)
    plan.wait_s = std::atoi(deed.c_str() + 5);
  else if (deed != "kill") plan.error = std::atoi(deed.c_str());
  if (const std::string where = value_of(text, "where"); !where.empty()) plan.where = where;
  if (const std::string least = value_of(text, "least"); !least.empty())
    plan.least = std::strtoul(least.c_str(), nullptr, 10);
  plan.frames = std::strtoul(value_of(text, "frames").c_str(), nullptr, 10);
  plan.mark = value_of(text, "mark");
  return plan;
}

thread_local bool is_ours = false;  // what is done here asks for memory, too

const Plan& the_plan() {
  static const Plan* plan = [] {  // stays: it is asked at the very end
    is_ours = true;
    const Plan* read = new Plan(read_plan());
    is_ours = false;
    return read;
  }();
  return *plan;
}

bool counts_for(const char* path) { return path && std::strstr(path, the_plan().where.c_str()); }
bool counts_for(int fd) {
  char path[PATH_MAX];
  const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path - 1);
  if (length < 0) return false;
  path[length] = '\0';
  return counts_for(path);
}

void leave_mark(const Plan& plan, const std::string& text = "") {
  if (plan.mark.empty()) return;
  const int before = errno;
  const long file = syscall(SYS_openat, AT_FDCWD, plan.mark.c_str(), O_WRONLY | O_CREAT, 0644);
  syscall(SYS_write, file, text.data(), text.size());
  syscall(SYS_close, file);
  errno = before;
}

std::atomic<long> calls{0};

struct AtTheEnd {
  ~AtTheEnd() {
    if (the_plan().nth == 0 && calls > 0) leave_mark(the_plan(), std::to_string(calls));
  }
} at_the_end;

struct Range {
  uintptr_t begin = 0, end = 0;

  bool holds(uintptr_t address) const { return begin <= address && address < end; }
};
Range program, standard_library;  // where their code is; known when main begins

// Of the program or the library that holds an address.
Range range_around(const void* address) {
  struct {
    uintptr_t address;
    Range range;
  } sought{reinterpret_cast<uintptr_t>(address), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* data) {
        auto& [address, range] = *static_cast<decltype(sought)*>(data);
        range = {object->dlpi_addr, object->dlpi_addr};
        for (int i = 0; i < object->dlpi_phnum; ++i)
          if (const auto& part = object->dlpi_phdr[i]; part.p_type == PT_LOAD)
            range.end = std::max(range.end, object->dlpi_addr + part.p_vaddr + part.p_memsz);
        return range.holds(address) ? 1 : 0;
      },
      &sought);
  return sought.range;
}

// Return addresses of the functions that are under way, the innermost first.
struct Frames {
  size_t left;
  uint64_t hash = 14695981039346656037u;

  void add(uintptr_t address) {
    if (!program.holds(address)) return;
    hash = (hash ^ address) * 1099511628211u;
    --left;
  }
};

// Has no request come from here before?
bool is_new_place(size_t frames) {
  constexpr size_t kSlots = 1 << 18;
  static std::atomic<uint64_t> seen[kSlots];
  Frames chain{frames};
  _Unwind_Backtrace(
      [](_Unwind_Context* context, void* chain) {
        auto& frames = *static_cast<Frames*>(chain);
        frames.add(_Unwind_GetIP(context));
        return frames.left > 0 ? _URC_NO_REASON : _URC_END_OF_STACK;
      },
      &chain);
  const uint64_t hash = chain.hash | 1;
  for (size_t slot = hash % kSlots;; slot = (slot + 1) % kSlots) {
    uint64_t expected = 0;
    if (seen[slot].compare_exchange_strong(expected, hash)) return true;
    if (expected == hash) return false;
  }
}

std::atomic<bool> main_has_begun{false};  // before it, while libraries make their own objects, a program cannot answer
int (*main_of_program)(int, char**, char**);

int begin_main(int argc, char** argv, char** environment) {
  program = range_around(reinterpret_cast<const void*>(main_of_program));
  standard_library = range_around(reinterpret_cast<const void*>(&std::get_new_handler));
  main_has_begun = true;
  return main_of_program(argc, argv, environment);
}

// Is there to be no memory for this request?
bool has_no_memory(size_t bytes) {
  if (is_ours || !main_has_begun) return false;
  const Plan& plan = the_plan();
  is_ours = true;
  const bool is_over = plan.nth > 0 && calls >= plan.nth;
  const bool counts =
      plan.on_memory && !is_over && bytes >= plan.least && (plan.frames == 0 || is_new_place(plan.frames));
  const bool fails = counts && ++calls == plan.nth;
  if (fails) leave_mark(plan);
  is_ours = false;
  return fails;
}

// Counts a call that is meant, and does what is to happen there. Returns its error, 0 if it is to be done.
int count_call(const Plan& plan) {
  const long call = ++calls;
  if (call < plan.nth || call >= plan.nth + plan.times || plan.nth == 0) return 0;
  leave_mark(plan);
  if (plan.wait_s > 0) sleep(static_cast<unsigned>(plan.wait_s));
  else if (plan.error == 0) ::kill(getpid(), SIGKILL);
  return plan.error;
}

template <class Where>
int fault(bool changes, Where where) {
  const Plan& plan = the_plan();
  if (!(changes ? plan.on_change : plan.on_read)) return 0;
  const int before = errno;
  const bool counts = counts_for(where);
  errno = before;
  return counts ? count_call(plan) : 0;
}

template <class Function>
Function next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool writes(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0; }

mode_t mode_in(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? static_cast<mode_t>(va_arg(arguments, int)) : 0;
}

}  // namespace

#define FAIL_IF(changes, where) \
  if (const int error = fault(changes, where)) return errno = error, -1

extern "C" {

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*begin)(), void (*end)(),
                      void (*end_of_loader)(), void* stack_end) {
  main_of_program = main;
  return next<decltype(&__libc_start_main)>("__libc_start_main")(begin_main, argc, argv, begin, end, end_of_loader,
                                                                 stack_end);
}

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_in(flags, arguments);
  va_end(arguments);
  FAIL_IF(writes(flags), path);
  return next<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = mode_in(flags, arguments);
  va_end(arguments);
  FAIL_IF(writes(flags), path);
  return next<int (*)(int, const char*, int, ...)>("openat")(folder, path, flags, mode);
}
ssize_t write(int fd, const void* data, size_t bytes) {
  FAIL_IF(true, fd);
  return next<ssize_t (*)(int, const void*, size_t)>("write")(fd, data, bytes);
}
ssize_t pread(int fd, void* data, size_t bytes, off_t position) {
  FAIL_IF(false, fd);
  return next<ssize_t (*)(int, void*, size_t, off_t)>("pread")(fd, data, bytes, position);
}
int usleep(useconds_t microseconds) {
  if (microseconds == 0 && the_plan().on_delay) return count_call(the_plan());
  return next<int (*)(useconds_t)>("usleep")(microseconds);
}
int fsync(int fd) {
  FAIL_IF(true, fd);
  return next<int (*)(int)>("fsync")(fd);
}
int posix_fallocate(int fd, off_t begin, off_t bytes) {
  if (const int error = fault(true, fd)) return error;
  return next<int (*)(int, off_t, off_t)>("posix_fallocate")(fd, begin, bytes);
}
int rename(const char* from, const char* to) noexcept {
  FAIL_IF(true, to);
  return next<int (*)(const char*, const char*)>("rename")(from, to);
}
int mkdir(const char* path, mode_t mode) noexcept {
  FAIL_IF(true, path);
  return next<int (*)(const char*, mode_t)>("mkdir")(path, mode);
}
int unlinkat(int folder, const char* path, int flags) noexcept {
  if (const int error = folder == AT_FDCWD ? fault(true, path) : fault(true, folder)) return errno = error, -1;
  return next<int (*)(int, const char*, int)>("unlinkat")(folder, path, flags);
}
int remove(const char* path) noexcept {
  FAIL_IF(true, path);
  return next<int (*)(const char*)>("remove")(path);
}

void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  if (has_no_memory(bytes)) return errno = ENOMEM, nullptr;
  return next<void* (*)(size_t, size_t)>("aligned_alloc")(alignment, bytes);
}

// Operator new ends here, wherever it is itself: a C++ library that is linked statically has one that nothing can
// replace. What other libraries ask for in C is theirs.
void* __libc_malloc(size_t bytes);
void* malloc(size_t bytes) noexcept {
  const auto caller = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  if ((program.holds(caller) || standard_library.holds(caller)) && has_no_memory(bytes)) return errno = ENOMEM, nullptr;
  return __libc_malloc(bytes);
}

}  // extern "C"
