#include "trainer/training_state.h"

#include <algorithm>

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/huggingface/import.h"

namespace braid {
namespace {

using namespace braid::testing;

class TrainingStateTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  RunConfig config_ = [] {
    RunConfig c;
    c.model = tiny_model();
    c.train.seq_length = 8;
    return c;
  }();

  void import_model_of(DType dtype, bool with_mtp) {
    make_model_folder(tiny_model(), dtype, with_mtp).write(path("hf"));
    import_model(HuggingFaceReader(path("hf")), path("ckpt"));
  }
  std::string load_error() {
    const ProcessMesh mesh(make_local_communicator(), 1, config_.model.num_experts);
    TrainingState state(config_, mesh);
    state.allocate(ctx_);
    return message_of<CheckpointError>([&] { state.load_weights(ctx_, open_checkpoint(path("ckpt"))); });
  }
};

TEST_F(TrainingStateTest, LoadWeightsTakesThemAloneAndConvertsThem) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const Precision precision : {Precision::kFp32, Precision::kFp64}) {
      import_model_of(dtype, true);
      config_.precision = precision;
      const ProcessMesh mesh(make_local_communicator(), 1, config_.model.num_experts);
      TrainingState state(config_, mesh);
      state.allocate(ctx_);
      state.load_weights(ctx_, open_checkpoint(path("ckpt")));
      const auto table = table_of(tiny_model(), true);
      int64_t compared = 0;
      for (const CheckpointSlice& slice : state.slices()) {
        const auto p = std::find_if(table.begin(), table.end(),
                                    [&](const Parameter& p) { return slice.name == "weights/" + p.name; });
        if (p == table.end()) {  // moments and balance counts
          for (int64_t i = 0; i < slice.data.bytes(); ++i)
            ASSERT_EQ(static_cast<const char*>(slice.data.raw())[i], 0) << slice.name;
          continue;
        }
        ASSERT_EQ(slice.data.dtype(), dtype_of_precision(precision));
        for (int64_t i = 0; i < slice.data.numel(); ++i)
          ASSERT_EQ(value_at(slice.data, i), weight_of(*p, slice.begin + i)) << slice.name << ' ' << i;
        compared += slice.data.numel();
      }
      int64_t weights = 0;
      for (const Parameter& p : table) weights += p.shape.numel();
      EXPECT_EQ(compared, weights);
      std::filesystem::remove_all(path("ckpt"));
    }
  }
}

TEST_F(TrainingStateTest, AnMtpBlockThatIsNotUsedIsLeftOut) {
  import_model_of(DType::kF32, true);
  config_.mtp.depth = 0;
  EXPECT_EQ(load_error(), "");
}

TEST_F(TrainingStateTest, MissingAndOtherWeightsAreNamed) {
  import_model_of(DType::kF32, true);
  config_.model.vocab_size = 25;
  EXPECT_EQ(load_error(),
            path("ckpt") + ": tensor weights/model.embed_tokens.weight is F32 (24, 8), expected F32 (25, 8)");
  config_.model = tiny_model();
  config_.model.num_hidden_layers = 3;
  expect_contains(load_error(), path("ckpt") + ": holds no tensor weights/model.layers.2.");
}

}  // namespace
}  // namespace braid
