#include "trainer/run/agreement.h"

#include "parallel/rank_text.h"
#include "tests/file_testing.h"
#include "tests/parallel/thread_ranks.h"

namespace braid {
namespace {

using namespace braid::testing;

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kConfig);
    EXPECT_NE(dynamic_cast<const OnEveryRank*>(&e), nullptr);
    return e.what();
  }
  return "nothing was thrown";
}

TEST(Agreement, NamesTheFirstFactThatDiffersAndItsRanks) {
  ThreadRanks(5).run([](Context& ctx, Communicator& world) {
    const auto facts = [&](const std::string& second) {
      return std::vector<Fact>{{"build", "1"}, {"variable NCCL_ALGO", second}, {"late", concat(world.rank())}};
    };
    const bool other = world.rank() == 1 || world.rank() >= 3;
    const std::string message = refusal([&] { check_agreement(ctx, world, facts(other ? "Tree" : "Ring")); });
    expect_contains(message, "the ranks do not agree: variable NCCL_ALGO is Ring on rank 0 (");
    expect_contains(message, ") and Tree on ranks 1, 3, 4 (");
    check_agreement(ctx, world, {{"build", "1"}, {"empty", ""}});
  });
}

TEST(Agreement, ALongerListOfAnotherBuildIsComparedByName) {
  ThreadRanks(2).run([](Context& ctx, Communicator& world) {
    std::vector<Fact> facts = {{"a", "1"}, {"b", "2"}};
    if (world.rank() == 1) facts = {{"c", "3"}, {"a", "1"}};
    if (world.rank() == 0) expect_contains(refusal([&] { check_agreement(ctx, world, facts); }), "b is 2 on rank 0");
    else refusal([&] { check_agreement(ctx, world, {{"a", "1"}, {"b", "(absent)"}}); });
  });
}

TEST(Environment, WhatLibrariesReadIsToldAndWhatBraidSetsIsNot) {
  for (const char* name : {"NCCL_ALGO", "NCCL_NVLS_ENABLE", "NVIDIA_TF32_OVERRIDE"}) unsetenv(name);
  const size_t before = notes_of_environment().size();
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
  setenv("NCCL_NVLS_ENABLE", "0", 1);
  EXPECT_EQ(notes_of_environment().size(), before);
  setenv("NCCL_NVLS_ENABLE", "1", 1);
  setenv("NCCL_ALGO", "Ring", 1);
  const std::vector<std::string> notes = notes_of_environment();
  ASSERT_EQ(notes.size(), before + 2);
  expect_contains(notes[0], "the environment says NCCL_ALGO=Ring, which may change what comes out");
  expect_contains(notes[1], "NCCL_NVLS_ENABLE=1");
  expect_contains(notes[1], "not repeatable at all");
  for (const char* name : {"NCCL_ALGO", "NCCL_NVLS_ENABLE", "CUDA_DEVICE_MAX_CONNECTIONS"}) unsetenv(name);
}

TEST(Agreement, ConfigsAreComparedKeyByKey) {
  ThreadRanks(3).run([](Context& ctx, Communicator& world) {
    const auto read = [&](double lr) {
      RunConfig config;
      config.optimizer.lr = lr;
      return config;
    };
    EXPECT_EQ(agree_on_config(ctx, world, [&] { return read(0.5); }).optimizer.lr, 0.5);
    const std::string message =
        refusal([&] { agree_on_config(ctx, world, [&] { return read(world.rank() == 2 ? 0.25 : 0.5); }); });
    expect_contains(message, "optimizer.lr is 0.5 on rank 0 (");
    expect_contains(message, "and 0.25 on rank 2 (");
  });
}

TEST(Agreement, AnErrorOfAllRanksNamesNone) {
  ThreadRanks(3).run([](Context& ctx, Communicator& world) {
    EXPECT_EQ(refusal([&] {
                agree_on_config(ctx, world, []() -> RunConfig { throw ConfigError("model.num_expert: unknown key"); });
              }),
              "model.num_expert: unknown key");
    EXPECT_EQ(refusal([&] {
                agree_on_config(ctx, world, [&]() -> RunConfig {
                  if (world.rank() > 0) throw ConfigError("a.yaml: cannot be read");
                  return {};
                });
              }),
              "a.yaml: cannot be read (on ranks 1, 2)");
  });
}

class SharedFolder : public FolderTest {};

TEST_F(SharedFolder, IsFoundSharedAndLeftClean) {
  const std::string dir = path("run");
  std::filesystem::create_directories(dir);
  ThreadRanks(3).run([&](Context& ctx, Communicator& world) { check_folder_is_shared(ctx, world, dir); });
  EXPECT_TRUE(std::filesystem::is_empty(dir));
}

TEST_F(SharedFolder, AnotherFolderOfThatNameIsRefused) {
  const std::string dir = path("run"), elsewhere = path("elsewhere");
  std::filesystem::create_directories(dir);
  std::filesystem::create_directories(elsewhere);
  write_bytes(elsewhere + "/.start-token", "of an earlier start");
  ThreadRanks(3).run([&](Context& ctx, Communicator& world) {
    const std::string message =
        refusal([&] { check_folder_is_shared(ctx, world, world.rank() == 1 ? elsewhere : dir); });
    expect_contains(message, elsewhere + ": ");
    expect_contains(message, "does not see there what rank 0 (");
    expect_contains(message, "(on rank 1)");
  });
  EXPECT_TRUE(std::filesystem::is_empty(dir));
}

TEST(TableOfRanks, GroupsNeighboursThatAreAlike) {
  ThreadRanks(4).run([](Context& ctx, Communicator& world) {
    const std::string table = table_of_ranks(ctx, world, world.rank() < 3 ? "GPU A" : "GPU B");
    EXPECT_EQ(table.rfind("ranks 0-2  ", 0), 0u) << table;
    expect_contains(table, "GPU A\nrank 3     ");
    expect_contains(table, "GPU B\n");
  });
}

}  // namespace
}  // namespace braid
