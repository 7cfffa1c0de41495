#include "parallel/process_mesh.h"

#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// Every rank of the test program, as a communicator of its own that a mesh may keep.
std::unique_ptr<Communicator> all_ranks() { return world().split(0); }

TEST(ProcessMesh, AnExpertGroupIsConsecutiveRanksAndAnExpertDataGroupTheirCopies) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  for (int EP = 1; EP <= W; EP *= 2) {
    const ProcessMesh mesh(all_ranks(), EP, 8);
    std::vector<int32_t> expert, expert_data;
    for (int i = 0; i < EP; ++i) expert.push_back(rank / EP * EP + i);
    for (int i = 0; i < W / EP; ++i) expert_data.push_back(rank % EP + i * EP);
    EXPECT_EQ(members(ctx, mesh.expert()), expert) << EP;
    EXPECT_EQ(members(ctx, mesh.expert_data()), expert_data) << EP;
    EXPECT_EQ(mesh.expert().rank(), rank % EP);
    EXPECT_EQ(mesh.expert_data().rank(), rank / EP);
    EXPECT_EQ(mesh.rank(), rank);
    EXPECT_EQ(mesh.size(), W);
  }
}

TEST(ProcessMesh, GroupsOfFourRanksInPairs) {
  if (world().size() != 4) GTEST_SKIP() << "needs 4 ranks";
  Context ctx = Context::cpu();
  const ProcessMesh mesh(all_ranks(), 2, 6);
  const std::vector<int32_t> expert[] = {{0, 1}, {0, 1}, {2, 3}, {2, 3}},
                             expert_data[] = {{0, 2}, {1, 3}, {0, 2}, {1, 3}};
  EXPECT_EQ(members(ctx, mesh.expert()), expert[world().rank()]);
  EXPECT_EQ(members(ctx, mesh.expert_data()), expert_data[world().rank()]);
}

TEST(ProcessMesh, AContextGroupIsConsecutiveRanksAndOneRankToTheData) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank();
  for (int CP = 1; CP <= W; CP *= 2) {
    const ProcessMesh mesh(all_ranks(), W, 8, CP);
    EXPECT_EQ(mesh.num_data_ranks(), W / CP);
    EXPECT_EQ(mesh.data_rank(), rank / CP);
    EXPECT_EQ(mesh.share().count, CP);
    EXPECT_EQ(mesh.share().index, rank % CP);
    ASSERT_EQ(mesh.context() == nullptr, CP == 1);
    if (CP == 1) continue;
    std::vector<int32_t> context;
    for (int i = 0; i < CP; ++i) context.push_back(rank / CP * CP + i);
    EXPECT_EQ(members(ctx, mesh.context()->ranks()), context);
    // What is gathered lies where place() says, for both rows of a batch.
    const int64_t R = 4;
    std::vector<int64_t> own;
    for (int64_t row = 0; row < R; ++row)
      own.push_back(100 * mesh.context()->whole_row_of(row) + mesh.context()->part_of(row));
    Scratch scratch(ctx);
    const Tensor all = mesh.context()->start_gather(ctx, scratch, Tensor::of(own.data(), {R}));
    mesh.context()->wait(ctx);
    ASSERT_EQ(all.numel(), mesh.context()->num_places(R));
    for (int64_t row = 0; row < 2; ++row)
      for (int64_t part = 0; part < 2 * CP; ++part)
        EXPECT_EQ(all.data<int64_t>()[mesh.context()->place(row, part, R)], 100 * row + part);
  }
  EXPECT_EQ(message_of<ConfigError>([&] { ProcessMesh(all_ranks(), 1, 8, W + 1); }),
            concat("parallel.context is ", W + 1, ", but must divide the ", W, " ranks"));
}

TEST(ProcessMesh, SaysWhichExpertSizesWouldFit) {
  const int W = world().size();
  auto message = [](int64_t expert, int64_t num_experts) {
    return message_of<ConfigError>([&] { ProcessMesh(all_ranks(), expert, num_experts); });
  };
  const std::string valid_for_8 = W == 1 ? "1" : W == 2 ? "1, 2" : "1, 2, 4";
  const std::string rule = concat(", but must divide both the ", W, " ranks and the ");
  EXPECT_EQ(message(0, 8), concat("parallel.expert is 0", rule, "8 experts; valid here: ", valid_for_8));
  EXPECT_EQ(message(-2, 8), concat("parallel.expert is -2", rule, "8 experts; valid here: ", valid_for_8));
  EXPECT_EQ(message(3, 8), concat("parallel.expert is 3", rule, "8 experts; valid here: ", valid_for_8));
  EXPECT_EQ(message(8, 8), concat("parallel.expert is 8", rule, "8 experts; valid here: ", valid_for_8));
  // Divides the ranks, but not the experts.
  if (W == 4) {
    EXPECT_EQ(message(4, 6), concat("parallel.expert is 4", rule, "6 experts; valid here: 1, 2"));
  }
}

}  // namespace
}  // namespace braid
