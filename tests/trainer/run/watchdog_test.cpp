#include "trainer/run/watchdog.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <future>
#include <nlohmann/json.hpp>

#include "tests/file_testing.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kTimeout = 10000;

// In a step, waiting in its collective number 100, quiet for as long as it may be.
RankView waiting(int rank) {
  RankView r;
  r.rank = rank;
  r.phase = Phase::kStep;
  r.step = 7;
  r.in_collective = true;
  r.collective = Collective::kAllReduce;
  r.call = 100;
  r.quiet_ms = kTimeout;
  r.longest_step_ms = 500;
  return r;
}
RankView outside(int rank) {
  RankView r = waiting(rank);
  r.in_collective = false;
  r.call = 99;
  r.collective = Collective::kAllGather;
  return r;
}

TEST(Verdict, NobodyIsBlamedWhileSomeoneMoves) {
  RankView moves = outside(1);
  moves.quiet_ms = kTimeout - 1;
  moves.asleep_ms = kTimeout - 1;
  EXPECT_EQ(verdict({waiting(0), moves, waiting(2)}, kTimeout), "");
}

TEST(Verdict, AStoppedRankIsNamedWhereverItStands) {
  for (RankView stopped : {waiting(1), outside(1)}) {
    stopped.stopped = true;
    const std::string text = verdict({waiting(0), stopped, waiting(2)}, kTimeout);
    expect_contains(text, "rank 1 of ");
    expect_contains(text, "is stopped, by SIGSTOP or a debugger: phase step, step 7, ");
    expect_contains(text, stopped.in_collective ? "in all_reduce number 100" : "after all_gather number 99");
    expect_contains(text, "; ranks 0, 2 wait in all_reduce number 100");
  }
}

TEST(Verdict, ARankThatSleepsOutsideACollectiveIsNamed) {
  RankView asleep = outside(2);
  asleep.asleep_ms = kTimeout;
  expect_contains(verdict({waiting(0), waiting(1), asleep}, kTimeout), "rank 2 of ");
  expect_contains(verdict({waiting(0), waiting(1), asleep}, kTimeout),
                  " does nothing for 10 s: phase step, step 7, after all_gather number 99");
}

TEST(Verdict, TheFileIsNamedThatARankWaitsFor) {
  RankView waits = outside(1);
  waits.phase = Phase::kData;
  waits.asleep_ms = kTimeout;
  waits.slow_read = "/a/b.h5, read 4096 bytes at byte 512";
  waits.slow_read_ms = 9000;
  expect_contains(verdict({waiting(0), waits}, kTimeout),
                  " does nothing for 10 s: phase data, step 7, after all_gather number 99, waits for a disk for 9 s: "
                  "/a/b.h5, read 4096 bytes at "
                  "byte 512; rank 0 waits in all_reduce number 100");
}

TEST(Verdict, ARankThatWorksIsGivenTime) {
  RankView works = outside(1);
  expect_contains(verdict({waiting(0), works}, kTimeout), "rank 1 of ");
  expect_contains(verdict({waiting(0), works}, kTimeout), "computes for 10 s, the longest step took 1 s");
  works.longest_step_ms = 3000;  // five of them are longer than the timeout
  EXPECT_EQ(verdict({waiting(0), works}, kTimeout), "");
  works.longest_step_ms = 0;  // the first step: nobody knows how long it takes
  EXPECT_EQ(verdict({waiting(0), works}, kTimeout), "");
  works.longest_step_ms = 500;
  works.phase = Phase::kSave;
  EXPECT_EQ(verdict({waiting(0), works}, kTimeout), "");
}

TEST(Verdict, TheRankThatIsBehindIsNamed) {
  RankView behind = waiting(1);
  behind.call = 97;
  const std::string text = verdict({waiting(0), behind, waiting(2)}, kTimeout);
  expect_contains(text, "rank 1 of ");
  expect_contains(
      text,
      "is behind for 10 s: phase step, step 7, in all_reduce number 97; ranks 0, 2 wait in all_reduce number 100");
}

TEST(Verdict, WhoSleepsInsideACollectiveIsNamed) {
  RankView asleep = waiting(0);
  asleep.still_ms = kTimeout;
  const std::string text = verdict({asleep, waiting(1)}, kTimeout);
  expect_contains(text, "rank 0 of ");
  expect_contains(text,
                  "sleeps inside a collective for 10 s: phase step, step 7, in all_reduce number 100; rank 1 waits");
}

// As where a GPU's collectives are only enqueued: the others' hosts look at
// their devices, outside, and seem to compute.
TEST(Verdict, WhoSleepsInsideACollectiveIsNamedWhereTheOthersWaitOutside) {
  RankView asleep = waiting(0), ahead = outside(1);
  asleep.call = 96;
  EXPECT_TRUE(verdict({asleep, ahead}, kTimeout).starts_with("rank 1 of ")) << "one that still looks is no sleeper";
  asleep.still_ms = kTimeout;
  expect_contains(verdict({asleep, ahead}, kTimeout), "rank 0 of ");
  expect_contains(verdict({asleep, ahead}, kTimeout),
                  "sleeps inside a collective for 10 s: phase step, step 7, in all_reduce number 96");
  asleep.call = ahead.call;  // it has come as far: the other one does not let it go on
  EXPECT_TRUE(verdict({asleep, ahead}, kTimeout).starts_with("rank 1 of "));
}

// Four ranks on two hosts, the network cut: the other one was through with its all_gather to the other host.
TEST(Verdict, WhoIsBehindAndWaitsForAnotherHostIsNotBlamed) {
  RankView across = waiting(1), here = waiting(0);
  across.call = 99;
  constexpr int64_t kWithOtherHost = 7, kOfThisHost = 8;
  const auto gather = [](int64_t group, int64_t number) { return SeenCall{group, number, Collective::kAllGather, 2}; };
  across.calls = {gather(kOfThisHost, 40), gather(kWithOtherHost, 59)};
  here.calls = {gather(kOfThisHost, 40), gather(5, 59), gather(kOfThisHost, 41)};
  const std::string text = verdict({here, across}, kTimeout);
  expect_contains(text, "rank 1 of ");
  expect_contains(text,
                  "waits for others for 10 s: a rank of another host, or the network between hosts, is at a stand: "
                  "phase step, step 7, in ");
  expect_contains(text, "number 99; rank 0 waits in ");
  here.calls.push_back(gather(kWithOtherHost, 60));  // then its ranks are all here
  expect_contains(verdict({here, across}, kTimeout), "rank 1 of ");
  expect_contains(verdict({here, across}, kTimeout), "is behind for 10 s");
}

TEST(Verdict, WhereAllWaitItIsAnotherHostOrTheNetwork) {
  expect_contains(verdict({waiting(0), waiting(1)}, kTimeout), "ranks 0, 1 of ");
  expect_contains(verdict({waiting(0), waiting(1)}, kTimeout), "another host, or the network");
}

TEST(Verdict, ARankThatIsGoneIsNamedAtOnceAndOneThatHasEndedNever) {
  RankView gone = waiting(1);
  gone.quiet_ms = 0;
  gone.exists = false;
  RankView moves = waiting(0);
  moves.quiet_ms = 0;
  expect_contains(verdict({moves, gone}, kTimeout), "rank 1 of ");
  expect_contains(verdict({moves, gone}, kTimeout), "is gone without an end");
  gone.phase = Phase::kEnded;
  EXPECT_EQ(verdict({moves, gone}, kTimeout), "");
}

TEST(Verdict, RanksThatCallOtherCollectivesAreNamedAtOnce) {
  RankView a = waiting(0), b = waiting(1), c = waiting(2);
  for (RankView* r : {&a, &b, &c}) {
    r->quiet_ms = 0;
    for (int64_t number = 95; number < 100; ++number) r->calls.push_back({7, number, Collective::kAllGather, 3});
  }
  b.calls.erase(b.calls.begin());  // it has forgotten more, and begun less
  b.calls.pop_back();
  // Another group of its own does something else meanwhile, and more often.
  for (int64_t number = 95; number < 99; ++number) c.calls.push_back({8, number, Collective::kBarrier, 1});
  EXPECT_EQ(verdict({a, b, c}, kTimeout), "");
  c.calls[3] = {7, 98, Collective::kBarrier, 3};
  const std::string text = verdict({a, b, c}, kTimeout);
  expect_contains(text,
                  "call different collectives: number 98 of their group is all_gather of 3 ranks on rank 0 and barrier "
                  "of 3 ranks on rank 2");
  expect_contains(text, ": phase step, step 7");
  c.calls[3] = {7, 98, Collective::kAllGather, 2};
  expect_contains(verdict({a, b, c}, kTimeout), "all_gather of 2 ranks on rank 2");
}

// Groups of a world need not call alike: on a GPU one alone does a pass again whose rows did not fit.
TEST(Board, KnowsTheGroupsOfCalls) {
  Context ctx = Context::cpu();
  ProgressBoard board(ctx, world());
  const auto visible = with_progress(world().split(0));
  const auto part = visible->split(world().rank() / 2);
  for (int i = 0; i <= world().rank() / 2; ++i) part->barrier(ctx);
  visible->barrier(ctx);
  world().barrier(ctx);
  for (int r = 0; r < board.size(); ++r) {
    const RankProgress &mine = board.rank(0), &p = board.rank(r);
    EXPECT_EQ(p.last_call().group, mine.last_call().group);
    EXPECT_EQ(p.last_call().number_in_group, 2);
    const auto& before = p.calls[static_cast<size_t>((p.calls_begun - 1) % RankProgress::kCalls)];
    const auto& of_first = mine.calls[static_cast<size_t>((mine.calls_begun - 1) % RankProgress::kCalls)];
    EXPECT_EQ(before.group == of_first.group, r / 2 == 0);
    EXPECT_EQ(before.number_in_group, r / 2 + 1);
  }
  world().barrier(ctx);
}

TEST(Activity, SeesWorkAndAStop) {
  const pid_t child = fork();
  if (child == 0)
    for (std::atomic<int64_t> i = 0;;) i.fetch_add(1);
  const ProcessActivity before = activity_of(child);
  for (int i = 0; i < 300 && activity_of(child).work == before.work; ++i) usleep(100000);
  EXPECT_GT(activity_of(child).work, before.work);
  EXPECT_TRUE(activity_of(child).is_ready());
  kill(child, SIGSTOP);
  int status = 0;
  waitpid(child, &status, WUNTRACED);
  const ProcessActivity stopped = activity_of(child);
  EXPECT_EQ(stopped.state, 'T');
  EXPECT_FALSE(stopped.is_ready());
  usleep(100000);
  EXPECT_EQ(activity_of(child).work, stopped.work);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
}

// On 1, 2 and 4 ranks: what each does is seen by all, and the collectives are remembered.
TEST(Board, ShowsEveryRankToEveryRank) {
  Context ctx = Context::cpu();
  ProgressBoard board(ctx, world());
  ASSERT_EQ(board.size(), world().size());
  const auto visible = with_progress(world().split(0));
  for (int64_t i = 0; i < 300; ++i) {
    int64_t value = 1;
    visible->all_reduce(ctx, Tensor::of(&value, {1}), ReduceOp::kSum);
    EXPECT_EQ(value, world().size());
  }
  enter_phase(Phase::kEvaluation, 40 + world().rank());
  world().barrier(ctx);
  for (int r = 0; r < board.size(); ++r) {
    const RankProgress& p = board.rank(r);
    EXPECT_EQ(p.rank, r);
    EXPECT_EQ(p.current_phase(), Phase::kEvaluation);
    EXPECT_EQ(p.step, 40 + r);
    EXPECT_GE(p.calls_begun, 300);
    EXPECT_EQ(p.in_collective, 0);
    EXPECT_EQ(p.last_call().collective, static_cast<int32_t>(Collective::kAllReduce));
    EXPECT_EQ(p.last_call().bytes, 8);
  }
  EXPECT_EQ(board.rank(world().rank()).pid, getpid());
  const auto record = nlohmann::json::parse(flight_record(board, "a test"));
  ASSERT_EQ(record.at("ranks").size(), static_cast<size_t>(board.size()));
  EXPECT_EQ(record.at("ranks").at(0).at("collectives").size(), static_cast<size_t>(RankProgress::kCalls));
  EXPECT_EQ(record.at("ranks").at(0).at("collectives").back().at("number"), board.rank(0).calls_begun.load());
  world().barrier(ctx);
}

TEST(Watchdog, EndsAProcessThatSleepsAndLeavesOneThatMoves) {
  Context ctx = Context::cpu();
  ProgressBoard board(ctx, world());
  std::promise<std::string> told;
  bool once = false;
  const auto start = now_ms();
  {
    Watchdog watchdog(board, 3.0, Watchdog::Launcher::kMayGo, [&](const std::string& text, const ProgressBoard&, bool) {
      if (!std::exchange(once, true)) told.set_value(text);
      usleep(100000);
    });
    enter_phase(Phase::kStep, 3);
    std::future<std::string> result = told.get_future();
    for (int i = 0; i < 60; ++i) {  // twice as long as it may stand still
      usleep(100000);
      enter_phase(Phase::kStep);
    }
    EXPECT_EQ(result.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    ASSERT_EQ(result.wait_for(std::chrono::seconds(30)), std::future_status::ready);
    const std::string text = result.get();
    if (world().size() == 1) expect_contains(text, "does nothing for ");
  }
  EXPECT_GT(now_ms() - start, 8500);
  world().barrier(ctx);
}

}  // namespace
}  // namespace braid
