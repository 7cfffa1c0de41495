#include "trainer/huggingface/stored_tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "model/parameter_layout.h"

namespace braid {
namespace {

Parameter parameter(const std::string& name, Shape shape) {
  return {name, shape, Owner::kEveryRank, Init::kNormal, Decay::kYes};
}

TEST(StoredTensors, ExpertsAreOneTensorPerProjection) {
  const auto gate_up = stored_tensors(parameter("model.layers.7.mlp.experts.gate_up_proj", {2, 6, 5}));
  ASSERT_EQ(gate_up.size(), 4u);
  const char* names[] = {"model.layers.7.mlp.experts.0.gate_proj.weight", "model.layers.7.mlp.experts.0.up_proj.weight",
                         "model.layers.7.mlp.experts.1.gate_proj.weight",
                         "model.layers.7.mlp.experts.1.up_proj.weight"};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(gate_up[i].name, names[i]);
    EXPECT_EQ(gate_up[i].shape, (Shape{3, 5}));
  }
  const auto down = stored_tensors(parameter("mtp.layers.0.mlp.experts.down_proj", {2, 5, 3}));
  ASSERT_EQ(down.size(), 2u);
  EXPECT_EQ(down[1].name, "mtp.layers.0.mlp.experts.1.down_proj.weight");
  EXPECT_EQ(down[1].shape, (Shape{5, 3}));
}

TEST(StoredTensors, OthersAreThemselves) {
  for (const char* name : {"model.layers.0.mlp.shared_expert.down_proj.weight", "model.layers.0.linear_attn.A_log"}) {
    const auto tensors = stored_tensors(parameter(name, {4, 3}));
    EXPECT_FALSE(holds_routed_experts(parameter(name, {4, 3})));
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].name, name);
    EXPECT_EQ(tensors[0].shape, (Shape{4, 3}));
  }
}

// The released model: 36 Gated DeltaNet layers of 1550 tensors, 12 attention layers of 1549, three more, MTP 1553.
TEST(StoredTensors, TheReleasedModelHasItsTensors) {
  const ModelConfig released;
  std::set<std::string> names;
  int64_t numel = 0, num_parameters = 0;
  for (const Parameter& p : parameter_table(released, MtpConfig{.depth = 1})) {
    num_parameters += p.shape.numel();
    for (const StoredTensor& tensor : stored_tensors(p)) {
      EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
      numel += tensor.shape.numel();
    }
  }
  EXPECT_EQ(names.size(), 75944u);
  EXPECT_EQ(std::count_if(names.begin(), names.end(), [](const auto& n) { return n.starts_with("mtp."); }), 1553);
  EXPECT_EQ(numel, num_parameters);
  EXPECT_EQ(numel, 81'324'862'720);
}

}  // namespace
}  // namespace braid
