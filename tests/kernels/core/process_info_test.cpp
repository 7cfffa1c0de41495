#include "kernels/core/process_info.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <tuple>

#include "kernels/core/temporary_folder.h"

namespace braid {
namespace {

// A system whose files are these.
class FakeSystem {
 public:
  void file(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  int cores() const { return quota_cores(root_.path()); }

 private:
  TemporaryFolder root_;
};

TEST(QuotaCores, AreManyWithoutAQuota) {
  FakeSystem system;
  EXPECT_EQ(system.cores(), INT_MAX);
  system.file("proc/self/cgroup", "0::/user.slice\n");
  system.file("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n");
  EXPECT_EQ(system.cores(), INT_MAX);
}

TEST(QuotaCores, AreTheLeastOfAGroupAndItsParents) {
  FakeSystem system;
  system.file("proc/self/cgroup", "0::/pod/container\n");
  system.file("sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  system.file("sys/fs/cgroup/pod/cpu.max", "350000 100000\n");
  EXPECT_EQ(system.cores(), 4);  // three and a half
  system.file("sys/fs/cgroup/pod/container/cpu.max", "50000 100000\n");
  EXPECT_EQ(system.cores(), 1);
}

TEST(QuotaCores, AreThoseOfAContainerThatNamesItsPlaceOnTheHost) {
  FakeSystem system;
  system.file("proc/self/cgroup", "0::/docker/0123abcd\n");
  system.file("sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(system.cores(), 2);
}

TEST(QuotaCores, AreReadFromTheFirstVersionToo) {
  FakeSystem system;
  system.file("proc/self/cgroup", "3:memory:/job\n2:cpuacct,cpu:/job\n1:cpuset:/job\n0::/\n");
  system.file("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1\n");
  system.file("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(system.cores(), INT_MAX);
  system.file("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "800000\n");
  EXPECT_EQ(system.cores(), 8);
}

TEST(HasSameCores, TellsAProcessThatIsBound) {
  if (allowed_cores() < 2) GTEST_SKIP() << "one core";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  for (const bool is_bound : {false, true}) {
    const int child = fork();
    if (child == 0) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(sched_getcpu(), &one);
      if (is_bound) sched_setaffinity(0, sizeof one, &one);
      std::ignore = write(ready[1], "x", 1);
      for (;;) pause();
    }
    char byte;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    EXPECT_EQ(has_same_cores(child), !is_bound);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT_FALSE(has_same_cores(child)) << "it is gone";
  }
}

TEST(UsableCores, AreAtLeastOneAndAtMostThoseAllowed) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), allowed_cores());
}

}  // namespace
}  // namespace braid
