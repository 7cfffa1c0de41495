#include "parallel/rank_text.h"

#include <cerrno>
#include <filesystem>
#include <mutex>
#include <new>
#include <tuple>

#include "tests/file_testing.h"
#include "tests/parallel/thread_ranks.h"

namespace braid {
namespace {

using namespace braid::testing;

TEST(RankText, EveryRankGetsEveryText) {
  for (int size : {1, 2, 5}) {
    ThreadRanks(size).run([size](Context& ctx, Communicator& world) {
      // Of different lengths, one of them empty, with a zero byte.
      auto text = [](int rank) { return rank == 0 ? "" : std::string(100 * rank, char('a' + rank)) + '\0'; };
      const auto texts = gather_text(ctx, world, text(world.rank()));
      ASSERT_EQ(texts.size(), size_t(size));
      for (int rank = 0; rank < size; ++rank) EXPECT_EQ(texts[rank], text(rank));
    });
  }
}

TEST(RankText, ReturnsWhatEveryRankReturned) {
  ThreadRanks(3).run([](Context& ctx, Communicator& world) {
    EXPECT_EQ(all_or_none(ctx, world, [&] { return std::string(world.rank(), 'x'); }),
              (std::vector<std::string>{"", "x", "xx"}));
  });
}

TEST(RankText, EveryRankThrowsTheErrorOfTheLowestThatFailed) {
  ThreadRanks(4).run([](Context& ctx, Communicator& world) {
    const std::string message = message_of<IoError>([&] {
      all_or_none(ctx, world, [&]() -> std::string {
        if (world.rank() == 2) throw IoError("disk full");
        if (world.rank() == 3) throw CheckpointError("later");
        return "fine";
      });
    });
    EXPECT_EQ(message, "disk full (on rank 2)");
    EXPECT_EQ(message_of<CheckpointError>([&] {
                all_or_none(ctx, world, [&]() -> std::string {
                  if (world.rank() == 1) throw CheckpointError("a hole");
                  return "";
                });
              }),
              "a hole (on rank 1)");
  });
}

TEST(RankText, ErrorsThatAreNotOursLeaveNoRankWaiting) {
  ThreadRanks(2).run([](Context& ctx, Communicator& world) {
    enum { kMemory, kThread, kPath, kOdd };
    for (const int kind : {kMemory, kThread, kPath, kOdd}) {
      try {
        all_or_none(ctx, world, [&]() -> std::string {
          if (world.rank() == 0) return "";
          if (kind == kMemory) throw std::bad_alloc();
          if (kind == kThread) throw std::system_error(EAGAIN, std::generic_category());  // what std::thread throws
          if (kind == kPath) std::ignore = std::filesystem::file_size("absent");
          throw std::runtime_error("odd");
        });
        ADD_FAILURE() << "nothing was thrown";
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), kind == kOdd    ? ExitCode::kInternal
                            : kind == kPath ? ExitCode::kIo
                                            : ExitCode::kOutOfMemory);
        EXPECT_STREQ(e.what(), kind == kMemory   ? "out of memory (on rank 1)"
                               : kind == kThread ? "out of memory: no thread can be started (on rank 1)"
                               : kind == kPath   ? "absent: No such file or directory (on rank 1)"
                                                 : "internal error: odd (on rank 1)");
      }
    }
  });
}

TEST(RankText, AnErrorOfAllRanksNamesNone) {
  ThreadRanks(3).run([](Context& ctx, Communicator& world) {
    const auto message = [&](int first) {
      return message_of<IoError>([&] {
        all_or_none(ctx, world, [&]() -> std::string {
          if (world.rank() >= first) throw IoError("full");
          return "";
        });
      });
    };
    EXPECT_EQ(message(0), "full");
    EXPECT_EQ(message(1), "full (on ranks 1, 2)");
  });
}

TEST(RankText, RankZeroDecides) {
  ThreadRanks(3).run([](Context& ctx, Communicator& world) {
    EXPECT_EQ(from_first_rank(ctx, world, [&] { return concat("of rank ", world.rank()); }), "of rank 0");
    try {
      from_first_rank(ctx, world, []() -> std::string { throw RunFolderError("in use"); });
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kRunFolderInUse);
      EXPECT_EQ(std::string(e.what()), "in use");
      EXPECT_NE(dynamic_cast<const OnEveryRank*>(&e), nullptr);
    }
  });
}

TEST(RankText, ListsRanksInWords) {
  EXPECT_EQ(rank_list({3}), "rank 3");
  EXPECT_EQ(rank_list({0, 1}), "ranks 0, 1");
  EXPECT_EQ(rank_list({0, 2, 3, 4, 7, 8}), "ranks 0, 2-4, 7, 8");
}

TEST(RankText, OneRankIsNotNumbered) {
  ThreadRanks(1).run([](Context& ctx, Communicator& world) {
    EXPECT_EQ(message_of<IoError>([&] { all_or_none(ctx, world, []() -> std::string { throw IoError("full"); }); }),
              "full");
  });
}

}  // namespace
}  // namespace braid
