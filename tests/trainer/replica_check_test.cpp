#include "trainer/replica_check.h"

#include "tests/messages.h"
#include "tests/model/tiny_config.h"
#include "tests/parallel/mpi_testing.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

using namespace braid::testing;

// On 4 ranks with experts spread over two, ranks 0 and 2 hold the same experts, and 1 and 3.
TEST(ReplicaCheck, NamesTheTensorAndTheRankOfOneFlippedBit) {
  Context ctx = Context::cpu();
  RunConfig c;
  c.model = tiny_model_config();
  c.mtp.depth = 0;
  ASSERT_EQ(world().size(), 4);
  const ProcessMesh mesh(world().split(0), 2, c.model.num_experts);
  InferenceState state(ctx, c, mesh, 1, 8);
  ModelParams& weights = state.model.weights();
  const auto complaint = [&] {
    return message_of<NumericsError>([&] { check_replicas(ctx, mesh, c.model, weights); });
  };
  EXPECT_EQ(complaint(), "");
  const auto expect_found = [&](Tensor& tensor, const std::string& differing) {
    unsigned char& byte = static_cast<unsigned char*>(tensor.raw())[tensor.bytes() - 1];
    if (world().rank() == 3) byte ^= 1;
    const std::string found = complaint();
    EXPECT_EQ(found.substr(0, found.find(';')), "copies of weights differ: " + differing);
    if (world().rank() == 3) byte ^= 1;
  };
  expect_found(weights.norm, "model.norm.weight on rank 3 is not what it is on rank 0");
  expect_found(weights.layers[1].moe.experts.down,
               "model.layers.1.mlp.experts.down_proj on rank 3 is not what it is on rank 1");
  EXPECT_EQ(complaint(), "");
}

}  // namespace
}  // namespace braid
