#include "trainer/starting_weights.h"

#include "tests/testing.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "trainer/config/config_reader.h"
#include "trainer/huggingface/huggingface_reader.h"
#include "trainer/huggingface/import.h"

namespace braid {
namespace {

using namespace braid::testing;

// A folder with 24 tokens, once as it is and once imported.
class StartingWeightsTest : public FolderTest {
 protected:
  Context ctx_ = Context::cpu();
  std::unique_ptr<Communicator> world_ = make_local_communicator();
  RunConfig config_ = [] {
    RunConfig c;
    c.model = tiny_model();
    c.train.seed = 7;
    return c;
  }();

  std::vector<StoredModel> both(DType dtype, bool with_mtp) {
    make_model_folder(tiny_model(), dtype, with_mtp).write(path("hf"));
    std::filesystem::remove_all(path("ckpt"));
    import_model(HuggingFaceReader(path("hf")), path("ckpt"));
    std::vector<StoredModel> models;
    for (const std::string& from : {"hf:" + path("hf"), path("ckpt")})
      models.push_back(open_stored_model(ctx_, *world_, from));
    return models;
  }
  std::vector<float> read(const WeightSource& source, const Parameter& p, int64_t begin, int64_t end) {
    std::vector<float> weights(end - begin, NAN);
    source.read_weights(p, begin, end, Tensor::of(weights.data(), {end - begin}));
    return weights;
  }
  // Whole, and cut at every fifth element.
  void expect_elements(const WeightSource& source, const Parameter& p, auto&& expected) {
    const int64_t numel = p.shape.numel();
    const std::vector<float> whole = read(source, p, 0, numel);
    for (int64_t i = 0; i < numel; ++i) ASSERT_EQ(whole[i], expected(i)) << p.name << ' ' << i;
    for (int64_t begin = 0; begin < numel; begin += 5) {
      const std::vector<float> part = read(source, p, begin, std::min(begin + 5, numel));
      for (size_t i = 0; i < part.size(); ++i) ASSERT_EQ(part[i], whole[begin + i]) << p.name << ' ' << begin + i;
    }
  }
};

TEST_F(StartingWeightsTest, AWholeModelIsTakenAsItIs) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const StoredModel& stored : both(dtype, true)) {
      const StartingWeights weights(*stored.weights, config_);
      EXPECT_TRUE(weights.notes().empty());
      for (const ConfigDifference& d : compare_configs(stored.config, config_))
        EXPECT_FALSE(d.key.starts_with("model."));
      for (const Parameter& p : table_of(config_.model, true))
        expect_elements(weights, p, [&](int64_t i) { return weight_of(p, i); });
    }
  }
}

TEST_F(StartingWeightsTest, AnMtpBlockThatIsMissingIsNewOnlyWhereAllowed) {
  for (const StoredModel& stored : both(DType::kF32, false)) {
    config_.init.fresh_mtp = false;
    const auto start = [&] { return StartingWeights(*stored.weights, config_); };
    EXPECT_EQ(message_of<CheckpointError>(start),
              stored.weights->path() +
                  ": holds no MTP block (mtp.*), but this run trains one: set init.fresh_mtp=true for "
                  "a new one, or mtp.depth=0");
    config_.init.fresh_mtp = true;
    const StartingWeights weights = start();
    EXPECT_EQ(weights.notes(),
              std::vector<std::string>{"the MTP block is new: " + stored.weights->path() + " holds none"});
    const InitialWeights random(config_.model, config_.init, 7);
    for (const Parameter& p : table_of(config_.model, true)) {
      const std::vector<float> fresh = read(random, p, 0, p.shape.numel());
      const bool is_new = p.name.starts_with("mtp.");
      expect_elements(weights, p, [&](int64_t i) { return is_new ? fresh[i] : weight_of(p, i); });
    }
  }
}

TEST_F(StartingWeightsTest, AVocabularyOfAnotherSizeIsTakenOnlyWhereAllowed) {
  for (const StoredModel& stored : both(DType::kBF16, true)) {
    for (const int64_t tokens : {30, 20}) {
      config_.model.vocab_size = tokens;
      config_.init.resize_vocabulary = false;
      const auto start = [&] { return StartingWeights(*stored.weights, config_); };
      expect_contains(message_of<CheckpointError>(start),
                      concat("its vocabulary has 24 tokens, this model's (model.vocab_size) ", tokens));
      config_.init.resize_vocabulary = true;
      const StartingWeights weights = start();
      ASSERT_EQ(weights.notes().size(), 1u);
      expect_contains(weights.notes()[0],
                      tokens == 30 ? "tokens 24 to 29 of the vocabulary are new" : "tokens 20 to 23 of ");
      const InitialWeights random(config_.model, config_.init, 7);
      for (const Parameter& p : table_of(config_.model, true)) {
        const std::vector<float> fresh = read(random, p, 0, p.shape.numel());
        const bool by_token = p.shape[0] == tokens;
        EXPECT_EQ(by_token, p.name == "model.embed_tokens.weight" || p.name == "lm_head.weight") << p.name;
        expect_elements(weights, p, [&](int64_t i) {
          return by_token && i >= 24 * config_.model.hidden_size ? fresh[i] : weight_of(p, i);
        });
      }
    }
  }
}

TEST_F(StartingWeightsTest, WhatIsNoModelIsNamed) {
  const auto error_of = [&](const std::string& from) {
    return message_of<CheckpointError>([&] { open_stored_model(ctx_, *world_, from); });
  };
  expect_contains(error_of("hf:" + path("absent")), path("absent"));
  expect_contains(error_of(path("absent")), "neither a checkpoint nor a run folder");
}

}  // namespace
}  // namespace braid
