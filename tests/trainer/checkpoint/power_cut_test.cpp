// What is left of a save when the power goes: this program's fsync and rename keep book of what a disk would hold then.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "kernels/core/durable_file.h"
#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "trainer/checkpoint/checkpoint.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

ino_t inode_of(const fs::path& path) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

// A file system promises what was flushed: the bytes of a file by its fsync, names in a folder by the folder's. Of the
// rest any part may survive.
class Disk {
 public:
  explicit Disk(fs::path root) : root_(std::move(root)) {}
  ~Disk() {
    for (const int fd : held_) close(fd);
  }

  void flush(int fd) {
    const fs::path path = fs::read_symlink("/proc/self/fd/" + std::to_string(fd));
    held_.push_back(dup(fd));  // no other file gets this number while it is in the books
    if (fs::is_directory(path)) folders_[inode_of(path)] = names_in(path);
    else files_[inode_of(path)] = bytes_of(path);
  }

  // What a cut of the power leaves now, as a folder. What was not flushed: is lost, or its names are there without its
  // bytes (the usual case), or any of it is there.
  enum class Unflushed { kLost, kNamesOnly, kAny };
  void leave(Unflushed unflushed, const fs::path& to) { leave(root_, inode_of(root_), unflushed, to); }

 private:
  struct Entry {
    ino_t inode;
    bool is_folder;
    int64_t bytes;  // now
  };
  using Names = std::map<std::string, Entry>;

  static Names names_in(const fs::path& folder) {
    Names names;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
      names[entry.path().filename()] = {inode_of(entry.path()), entry.is_directory(),
                                        entry.is_directory() ? 0 : static_cast<int64_t>(entry.file_size())};
    return names;
  }

  // `now` is where the folder is now, empty if it is no more.
  void leave(const fs::path& now, ino_t inode, Unflushed unflushed, const fs::path& to) {
    fs::create_directory(to);
    const Names flushed = folders_[inode];
    const bool latest = unflushed == Unflushed::kNamesOnly || (unflushed == Unflushed::kAny && random_() % 2 == 0);
    const Names current = now.empty() ? flushed : names_in(now);
    for (const auto& [name, entry] : latest ? current : flushed) {
      const auto here = std::find_if(current.begin(), current.end(), [&, inode = entry.inode](const auto& named) {
        return named.second.inode == inode;  // perhaps by another name
      });
      const fs::path path = now.empty() || here == current.end() ? fs::path() : now / here->first;
      if (entry.is_folder) leave(path, entry.inode, unflushed, to / name);
      else write_bytes(to / name, bytes_left(path, entry, unflushed));
    }
  }
  std::string bytes_left(const fs::path& path, const Entry& entry, Unflushed unflushed) {
    const auto found = files_.find(entry.inode);
    if (found != files_.end()) return found->second;
    if (unflushed == Unflushed::kLost || path.empty()) return "";
    std::string bytes(static_cast<size_t>(entry.bytes), '\0');
    if (unflushed == Unflushed::kNamesOnly || bytes.empty()) return bytes;
    const size_t there = random_() % bytes.size();
    return bytes.replace(0, there, bytes_of(path), 0, there);
  }

  fs::path root_;
  std::map<ino_t, std::string> files_;
  std::map<ino_t, Names> folders_;
  std::vector<int> held_;
  std::mt19937 random_{1};
};

// Set while a test keeps book.
Disk* disk = nullptr;
std::function<void()> at_each_call;

class PowerCutTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    fs::create_directory(path("disk"));
    disk_.emplace(path("disk"));
    disk = &*disk_;
    at_each_call = [this] { cut(); };
  }
  void TearDown() override {
    disk = nullptr;
    disk_.reset();
    FolderTest::TearDown();
  }
  std::string checkpoints(const std::string& root = "disk") const { return path(root + "/run/checkpoints"); }

  void save(int64_t step, double value) {
    Tensor t = random_normal({5000}, DType::kF64, static_cast<uint64_t>(step));
    t.data<double>()[0] = value;
    CheckpointInfo info;
    info.step = step;
    saving_ = {step, value};
    save_checkpoint(ctx_, *world_, checkpoints(), info, {{"t", {5000}, 0, 5000, t}});
    promised_ = saving_;
    cut();
  }

  // The power goes: whatever the disk made of it, each checkpoint that is there is whole, and the newest is the one
  // that was promised last or the one that was under way.
  void cut() {
    using enum Disk::Unflushed;
    for (const auto unflushed : {kLost, kNamesOnly, kAny, kAny, kAny}) {
      ++cuts_;
      const std::string left = "left-" + std::to_string(cuts_);
      disk_->leave(unflushed, path(left));
      const auto all = list_checkpoints(checkpoints(left));
      for (const CheckpointEntry& entry : all)
        ASSERT_EQ(message_of<CheckpointError>([&] { CheckpointReader(entry.path).verify(); }), "") << "cut " << cuts_;
      const auto branch = branch_checkpoints(checkpoints(left));
      std::pair<int64_t, double> newest;
      if (!branch.empty()) newest = {branch[0].step, value_in(branch[0].path)};
      EXPECT_TRUE(newest == promised_ || newest == saving_)
          << "cut " << cuts_ << ": step " << newest.first << " holds " << newest.second << ", promised was step "
          << promised_.first << " with " << promised_.second;
      fs::remove_all(path(left));
    }
  }
  static double value_in(const std::string& checkpoint) {
    Tensor t = zeros_f64({5000});
    CheckpointSlice slice{"t", {5000}, 0, 5000, t};
    CheckpointReader(checkpoint).read(slice);
    return t.data<double>()[0];
  }

  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();
  std::optional<Disk> disk_;
  std::pair<int64_t, double> promised_, saving_;  // step and value; step 0: none
  int cuts_ = 0;
};

TEST_F(PowerCutTest, LeavesWholeCheckpointsAndWhatWasPromised) {
  save(1, 10);
  save(2, 20);
  save(3, 30);
  for (const int64_t keep : {2, 1}) {
    prune_checkpoints(checkpoints(), keep, checkpoints() + "/" + step_name(3));
    cut();
  }
  EXPECT_GT(cuts_, 3 * 10 * 5);
}

// The disk of this test loses what it may: a save without the flush before its name would be seen.
TEST_F(PowerCutTest, OfAFileThatWasNotFlushedTheNameMayBeAllThatStays) {
  disk = nullptr;
  write_bytes(path("disk/f"), "bytes");
  disk_->leave(Disk::Unflushed::kLost, path("lost"));
  EXPECT_FALSE(fs::exists(path("lost/f")));
  disk_->leave(Disk::Unflushed::kNamesOnly, path("names"));
  EXPECT_EQ(bytes_of(path("names/f")), std::string(5, '\0'));
  disk = &*disk_;
  at_each_call = [] {};
  write_file_atomically(path("disk/f"), "others");
  disk = nullptr;
  disk_->leave(Disk::Unflushed::kLost, path("flushed"));
  EXPECT_EQ(bytes_of(path("flushed/f")), "others");
}

}  // namespace
}  // namespace braid

extern "C" {

int fsync(int fd) {
  using namespace braid;
  if (disk) {
    Disk* const book = std::exchange(disk, nullptr);  // what follows is the test's own
    at_each_call();
    book->flush(fd);
    disk = book;
  }
  return 0;
}

int rename(const char* from, const char* to) noexcept {
  using namespace braid;
  const int status = static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
  if (Disk* const book = std::exchange(disk, nullptr)) {
    at_each_call();
    disk = book;
  }
  return status;
}

}  // extern "C"
