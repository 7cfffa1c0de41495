// Saves, prunes and resumes in which a request for host memory finds none: each request in turn, until none is left.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <new>

#include "kernels/core/thrown.h"
#include "tests/testing.h"
#include "tests/trainer/checkpoint/checkpoint_testing.h"
#include "tests/trainer/checkpoint/faulty_system.h"  // whose fsync takes no time
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_folder.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/checkpoint/resume.h"

namespace {

std::atomic<int64_t> requests_left{0};  // the one that brings it to 0 finds no memory

bool refuses() { return requests_left.load(std::memory_order_relaxed) > 0 && requests_left.fetch_sub(1) == 1; }

}  // namespace

// What the other forms of the C++ library come to.
void* operator new(size_t bytes) {
  void* block = refuses() ? nullptr : std::malloc(bytes);
  if (!block) throw std::bad_alloc();
  return block;
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

class CheckpointMemoryTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();

  // Two tensors full of `value`.
  std::vector<CheckpointSlice> slices(double value) const {
    Tensor small = zeros_f64({3}), large = zeros_f64({1000});
    for (int64_t i = 0; i < 3; ++i) small.data<double>()[i] = value;
    for (int64_t i = 0; i < large.numel(); ++i) large.data<double>()[i] = value;
    return {{"small", {3}, 0, 3, small}, {"large", {1000}, 0, 1000, large}};
  }
  static CheckpointInfo info(int64_t step) {
    CheckpointInfo info;
    info.step = step;
    info.config_yaml = std::string(2000, 'c');
    info.batch_sizes = {{0, 8}};
    return info;
  }
  void save(int64_t step, double value) {
    save_checkpoint(ctx_, *world_, path("checkpoints"), info(step), slices(value));
  }
  // What a resume finds: step, and value, 0 where its tensors disagree.
  struct Found {
    int64_t step = -1;
    double value = -1;
    size_t notes = 0;
  };
  Found resume() {
    Found found;
    Tensor small = zeros_f64({3}), large = zeros_f64({1000});
    const Resumed resumed = resume_from(
        ctx_, *world_, {.folder = path("checkpoints")}, [](const CheckpointReader&) {},
        [&](const CheckpointReader& reader) {
          CheckpointSlice slices[] = {{"small", {3}, 0, 3, small}, {"large", {1000}, 0, 1000, large}};
          for (CheckpointSlice& slice : slices) reader.read(slice);
          reader.settle(ctx_, *world_);
        });
    found.step = resumed.info.step;
    found.notes = resumed.damaged.size() + resumed.set_aside.size();
    found.value = small.data<double>()[0];
    for (const Tensor& t : {small, large})
      for (int64_t i = 0; i < t.numel(); ++i)
        if (t.data<double>()[i] != found.value) found.value = 0;
    return found;
  }

  // What a process ends with that does `body` and finds no memory for its request number `nth`. kTerminated: an
  // exception where the C++ library lets none through (it opens a folder so); in braid that ends with the same message
  // and code as kOutOfMemory.
  enum class End { kNeededFewer, kWentOn, kOutOfMemory, kTerminated, kWrong };
  template <class Body>
  End without_memory_for(int64_t nth, Body&& body) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      std::set_terminate([] { _exit(static_cast<int>(requests_left <= 0 ? End::kTerminated : End::kWrong)); });
      requests_left = nth;
      End end = End::kWrong;
      try {
        const bool is_right = body();
        end = !is_right ? End::kWrong : requests_left <= 0 ? End::kWentOn : End::kNeededFewer;
      } catch (const std::exception& e) {
        requests_left = 0;
        if (as_error(e).code() == ExitCode::kOutOfMemory) end = End::kOutOfMemory;
        else std::fprintf(stderr, "request %lld: %s\n", static_cast<long long>(nth), e.what());
      }
      _exit(static_cast<int>(end));
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "request " << nth << " ended with signal " << WTERMSIG(status);
    const auto end = static_cast<End>(WEXITSTATUS(status));
    EXPECT_NE(end, End::kWrong) << "request " << nth;
    ++counts_[end];
    return end;
  }
  int64_t refused() { return counts_[End::kOutOfMemory] + counts_[End::kTerminated]; }
  std::map<End, int64_t> counts_;
};

TEST_F(CheckpointMemoryTest, ASaveWithoutMemoryAnywhereCommitsAllOrNothing) {
  save(1, 1);
  for (int64_t nth = 1;; ++nth) {
    const auto value = static_cast<double>(nth);
    const End end = without_memory_for(nth, [&] { return save(2, value), true; });
    const Found found = resume();
    EXPECT_EQ(found.notes, 0u) << nth;
    EXPECT_EQ(found.value, found.step == 2 ? value : 1) << nth;
    EXPECT_TRUE(found.step == 2 || end == End::kOutOfMemory || end == End::kTerminated) << nth;
    if (end != End::kTerminated) {
      for (const auto& entry : fs::directory_iterator(path("checkpoints")))
        EXPECT_FALSE(entry.path().filename().string().starts_with(".tmp-")) << nth << ' ' << entry.path();
    }
    if (end == End::kNeededFewer || HasFailure()) break;
    fs::remove_all(path("checkpoints/step-000000002"));
  }
  EXPECT_GT(refused(), 300);
  std::printf("%lld requests found no memory\n", static_cast<long long>(refused()));
}

TEST_F(CheckpointMemoryTest, AResumeWithoutMemoryAnywhereTakesTheNewestOrNone) {
  save(1, 1);
  save(2, 2);
  for (int64_t nth = 1;; ++nth) {
    const End end = without_memory_for(nth, [&] {
      const Found found = resume();
      return found.step == 2 && found.value == 2 && found.notes == 0;
    });
    EXPECT_EQ(list_checkpoints(path("checkpoints")).size(), 2u) << nth;
    if (end == End::kNeededFewer || HasFailure()) break;
  }
  EXPECT_GT(refused(), 300);
  std::printf("%lld requests found no memory\n", static_cast<long long>(refused()));
}

// The older one goes for a newer one that was read back, or stays: never both.
TEST_F(CheckpointMemoryTest, ASaverWithoutMemoryAnywhereLeavesTheOldOneOrTheNew) {
  for (int64_t nth = 1;; ++nth) {
    save(1, 1);
    const std::vector<CheckpointSlice> newer = slices(2);
    const End end = without_memory_for(nth, [&] {
      CheckpointSaver saver(ctx_, *world_, {.folder = path("checkpoints"), .keep = 1, .in_background = false}, newer);
      saver.start(info(2), newer);
      const SaveReport report = saver.take_reports().at(0);
      return report.path.empty() == !report.problem.empty();
    });
    const Found found = resume();
    EXPECT_EQ(found.value, static_cast<double>(found.step)) << nth;
    EXPECT_EQ(found.notes, 0u) << nth;
    EXPECT_TRUE(end != End::kNeededFewer || (found.step == 2 && list_checkpoints(path("checkpoints")).size() == 1));
    fs::remove_all(path("checkpoints"));
    if (end == End::kNeededFewer || HasFailure()) break;
  }
  EXPECT_GT(refused() + counts_[End::kWentOn], 300);
  std::printf("%lld requests found no memory\n", static_cast<long long>(refused() + counts_[End::kWentOn]));
}

TEST_F(CheckpointMemoryTest, PruningWithoutMemoryAnywhereLeavesWholeCheckpoints) {
  for (int64_t nth = 1;; ++nth) {
    for (int64_t step = 1; step <= 3; ++step) save(step, static_cast<double>(step));
    const End end = without_memory_for(
        nth, [&] { return prune_checkpoints(path("checkpoints"), 1, path("checkpoints/step-000000003")), true; });
    const Found found = resume();
    EXPECT_EQ(found.step, 3) << nth;
    EXPECT_EQ(found.value, 3) << nth;
    EXPECT_EQ(found.notes, 0u) << nth;
    if (end == End::kNeededFewer || HasFailure()) break;
  }
  EXPECT_GT(refused(), 20);
  std::printf("%lld requests found no memory\n", static_cast<long long>(refused()));
}

}  // namespace
}  // namespace braid
