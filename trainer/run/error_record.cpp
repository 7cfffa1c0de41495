#include "trainer/run/error_record.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "kernels/core/process_info.h"
#include "parallel/mpi_session.h"
#include "trainer/run/watchdog.h"

namespace braid {
namespace {

// Set by one thread, used by those that watch as well.
std::mutex folder_mutex;
std::string the_folder;
std::string error_folder() {
  const std::scoped_lock lock(folder_mutex);
  return the_folder;
}

struct Meaning {
  const char *kind, *remedy;
};

Meaning meaning_of(ExitCode code) {
  switch (code) {
    case ExitCode::kDone: return {"slow disk", "the run waits for it; look at the disk or network that holds the file"};
    case ExitCode::kConfig: return {"config", "correct the config or command line"};
    case ExitCode::kData: return {"data", "check the file with braid data inspect"};
    case ExitCode::kCheckpoint:
      return {"checkpoint", "check it with braid ckpt verify; --resume-from takes an older one"};
    case ExitCode::kCommunication:
      return {"communication", "start again with --resume; if it is the same host again, leave it out"};
    case ExitCode::kNumerics:
      return {"numerics", "resume from an earlier checkpoint, with a lower learning rate if it comes back"};
    case ExitCode::kOutOfMemory:
      return {"out of memory", "use smaller micro-batches or more ranks; braid plan tells what is needed"};
    case ExitCode::kRunFolderInUse: return {"run folder in use", "end the other run or choose another run.dir"};
    case ExitCode::kIo: return {"input/output", "make room or mend the disk, then start again with --resume"};
    case ExitCode::kEnvironment: return {"environment", "check device, launcher and libraries"};
    default: return {"internal", "report it: it is a defect of braid"};
  }
}

// "/a/b.yaml:3: …" -> "/a/b.yaml:3"
std::string file_in(const std::string& message) {
  const std::string first = message.substr(0, message.find(": "));
  return first.size() < message.size() && first.find('/') != first.npos && first.find(' ') == first.npos ? first : "";
}

// What messages say in the same words everywhere: "tensor NAME: …", "expected X, found Y". Empty where it is not there.
struct Details {
  std::string tensor, expected, found;
};

Details details_in(const std::string& message) {
  const auto between = [&](const std::string& before, const std::string& after, size_t from = 0) {
    const size_t at = message.find(before, from);
    if (at == message.npos) return std::string();
    const size_t begin = at + before.size();
    return message.substr(begin, message.find(after, begin) - begin);
  };
  Details details;
  details.tensor = between("tensor ", ":");
  if (details.tensor.find(' ') != details.tensor.npos) details.tensor.clear();  // a sentence about tensors
  const size_t expected = message.find("expected "), found = message.find(", found ", expected);
  if (expected == message.npos || found == message.npos) return details;
  details.expected = between("expected ", ", found ");
  details.found = between(", found ", " (on rank", expected);
  return details;
}

constexpr int kHangCode = static_cast<int>(ExitCode::kCommunication);

// Whatever a terminal or a disk does.
void end_soon() {
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::seconds(10));
    std::_Exit(kHangCode);
  }).detach();
}

void say_hang(const std::string& verdict, const std::string& more) {
  const std::string text = concat("braid: ", verdict, more, "\n");
  std::ignore = ::write(STDERR_FILENO, text.data(), text.size());
  record_error(ExitCode::kCommunication, verdict);
}

}  // namespace

void set_error_folder(const std::string& run_dir) {
  const std::scoped_lock lock(folder_mutex);
  the_folder = run_dir;
}

void record_error(ExitCode code, const std::string& message) noexcept {
  try {
    const std::string folder = error_folder();
    if (folder.empty()) return;
    const RankProgress& progress = own_progress();
    const Meaning meaning = meaning_of(code);
    nlohmann::ordered_json line = {{"time", utc_now()},
                                   {"code", static_cast<int>(code)},
                                   {"kind", meaning.kind},
                                   {"rank", progress.rank.load()},
                                   {"host", host_name()},
                                   {"step", progress.step.load()},
                                   {"phase", name_of(progress.current_phase())}};
    const std::string file = file_in(message);
    if (!file.empty()) line["file"] = file;
    const Details details = details_in(message);
    if (!details.tensor.empty()) line["tensor"] = details.tensor;
    if (!details.found.empty()) line["expected"] = details.expected, line["found"] = details.found;
    line["message"] = message;
    line["do"] = meaning.remedy;
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    const int fd =
        ::open((folder + "/errors.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
    if (fd < 0) return;
    std::ignore = ::write(fd, text.data(), text.size());  // one write: lines of several ranks do not mix
    ::close(fd);
  } catch (...) {}
}

void tell_slow_read(const std::string& text) {
  const RankProgress& progress = own_progress();
  const bool is_run = !error_folder().empty();
  std::string who;  // a command that is one process and has no steps needs no name
  if (is_run || MpiSession::launched_by_mpi()) who = concat("rank ", progress.rank.load(), " of ", host_name());
  if (is_run) who += concat(", step ", progress.step.load());
  const std::string line = concat("WARNING: ", who, who.empty() ? "" : ": ", text, "\n");
  std::ignore = ::write(STDERR_FILENO, line.data(), line.size());
  record_error(ExitCode::kDone, text);  // last, as the run folder may lie on that disk
}

void end_of_hang(const std::string& run_dir, const std::string& verdict, const ProgressBoard& board, bool speaks) {
  if (speaks) {
    end_soon();
    const std::string path = concat(run_dir, "/crash-", host_name(), "-", getpid(), ".json");
    say_hang(verdict, concat("; the last collectives of every rank are in ", path));
    std::ofstream(path) << flight_record(board, verdict);
  }
  std::_Exit(kHangCode);
}

void end_of_start(const std::string& verdict, bool speaks) {
  if (speaks) {
    end_soon();
    say_hang(verdict, "");
  }
  std::_Exit(kHangCode);
}

}  // namespace braid
