#include "parallel/mpi_session.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "tests/testing.h"

namespace braid {
namespace {

// What this program does when a test below starts it with an argument.
int play(const std::string& part, int argc, char** argv) {
  try {
    MpiSession session(argc, argv);
    Context ctx = Context::cpu();
    const auto world = session.world();
    if (part == "twice") MpiSession again(argc, argv);
    if (world->rank() == 1) {
      if (part == "abort") MpiSession::abort(7);
      if (part == "fail" || part == "leave") throw DataError("rank 1 cannot read its shard");
    }
    // Rank 1 does not come if it failed: who waits here must be ended by its abort.
    world->barrier(ctx);
    std::printf("rank %d of %d is done\n", world->rank(), world->size());
    return 0;
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    if (part == "leave") return static_cast<int>(e.code());
    MpiSession::abort(static_cast<int>(e.code()));
  }
}

struct Ended {
  int exit_code;
  std::string output;
};

Ended run(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  Ended ended{-1, {}};
  char buffer[4096];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, pipe)) ended.output.append(buffer, count);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.exit_code = WEXITSTATUS(status);
  return ended;
}

const std::string kSelf = " '" + braid::testing::moved("BRAID_MPI_SESSION_TEST", BRAID_TEST_PROGRAM) + "' ";
const std::string kMpiexec = braid::testing::moved("BRAID_MPIEXEC", BRAID_MPIEXEC);

Ended run_on_two_ranks(const std::string& part) { return run(kMpiexec + " 2" + kSelf + part); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// MPI libraries wait by sched_yield. The system counts a yield as involuntary, a nap as voluntary.
TEST(MpiSession, WaitingIsSleepingWhereTheCoreIsWanted) {
  cpu_set_t allowed, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  int core = 0;
  while (!CPU_ISSET(core, &allowed)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  std::atomic<bool> enough = false;
  int64_t naps = 0;
  std::thread([&] {
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    std::thread rival([&] {  // on the same core
      while (!enough) continue;
    });
    rusage before = {}, now = {};
    getrusage(RUSAGE_THREAD, &before);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (naps < 10 && std::chrono::steady_clock::now() < end) {
      sched_yield();
      getrusage(RUSAGE_THREAD, &now);
      naps = now.ru_nvcsw - before.ru_nvcsw;
    }
    enough = true;
    rival.join();
  }).join();
  EXPECT_GE(naps, 10);
}

TEST(MpiSession, EveryRankSeesTheWorld) {
  const Ended ended = run_on_two_ranks("finish");
  EXPECT_EQ(ended.exit_code, 0) << ended.output;
  EXPECT_TRUE(contains(ended.output, "rank 0 of 2 is done")) << ended.output;
  EXPECT_TRUE(contains(ended.output, "rank 1 of 2 is done")) << ended.output;
}

TEST(MpiSession, AbortEndsTheJobWithItsExitCode) {
  const Ended ended = run_on_two_ranks("abort");
  EXPECT_EQ(ended.exit_code, 7) << ended.output;
  EXPECT_FALSE(contains(ended.output, "is done")) << ended.output;
}

TEST(MpiSession, AnErrorOnOneRankEndsTheJobAndNobodyHangs) {
  const Ended ended = run_on_two_ranks("fail");
  EXPECT_EQ(ended.exit_code, static_cast<int>(ExitCode::kData)) << ended.output;
  EXPECT_TRUE(contains(ended.output, "rank 1 cannot read its shard")) << ended.output;
}

TEST(MpiSession, ARankThatLeavesOnAnErrorDoesNotWaitForTheOthers) {
  const Ended ended = run_on_two_ranks("leave");
  EXPECT_EQ(ended.exit_code, static_cast<int>(ExitCode::kData)) << ended.output;
}

TEST(MpiSession, IsOnePerProcess) {
  const Ended ended = run_on_two_ranks("twice");
  EXPECT_EQ(ended.exit_code, static_cast<int>(ExitCode::kEnvironment)) << ended.output;
  EXPECT_TRUE(contains(ended.output, "MPI was already started")) << ended.output;
}

TEST(MpiSession, AbortWithoutMpiEndsTheProcess) { EXPECT_EXIT(MpiSession::abort(5), ::testing::ExitedWithCode(5), ""); }

TEST(MpiSession, RefusesToRunAloneWhenTheLauncherStartedMore) {
  for (const std::string variable : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"}) {
    const Ended ended = run(concat(variable, "=4", kSelf, "finish"));
    EXPECT_EQ(ended.exit_code, static_cast<int>(ExitCode::kEnvironment)) << ended.output;
    EXPECT_TRUE(contains(ended.output, concat("MPI sees one process, but ", variable, " is 4"))) << ended.output;
  }
  // One process on purpose, by mpirun inside an allocation of four tasks.
  EXPECT_EQ(run("SLURM_NTASKS=4 " + kMpiexec + " 1" + kSelf + "finish").exit_code, 0);
}

TEST(MpiSession, KnowsItsLauncherByTheEnvironment) {
  const char* const variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS"};
  for (const char* variable : variables) unsetenv(variable);
  EXPECT_FALSE(MpiSession::launched_by_mpi());
  for (const char* variable : variables) {
    setenv(variable, "2", 1);
    EXPECT_TRUE(MpiSession::launched_by_mpi()) << variable;
    unsetenv(variable);
  }
  setenv("SLURM_NTASKS", "1", 1);
  EXPECT_FALSE(MpiSession::launched_by_mpi());
  unsetenv("SLURM_NTASKS");
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  return argc > 1 ? braid::play(argv[1], argc, argv) : RUN_ALL_TESTS();
}
