#include <gtest/gtest.h>

#include "kernels/core/memory.h"
#include "parallel/process_mesh.h"
#include "tests/messages.h"
#include "trainer/config/config_reader.h"
#include "trainer/device/implementations.h"
#include "trainer/device/self_check.h"
#include "trainer/device/start.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

using namespace braid::testing;

// What only a GPU can show; skipped where there is none.
class GpuStart : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Context::num_gpus() == 0) GTEST_SKIP() << "there is no GPU here";
  }
  static RunConfig released_model(Precision precision) {  // the defaults of a config are those of the released model
    RunConfig config;
    config.precision = precision;
    config.train.seq_length = 4096;
    return config;
  }
  static RunConfig odd_model(Precision precision) {
    RunConfig config = released_model(precision);
    ModelConfig& m = config.model;
    m.hidden_size = 52;
    m.head_dim = 20;
    m.partial_rotary_factor = 0.5;
    m.linear_num_key_heads = 2;
    m.linear_num_value_heads = 6;
    m.linear_key_head_dim = 24;
    m.linear_value_head_dim = 40;
    m.linear_conv_kernel_dim = 3;
    m.vocab_size = 259;
    m.num_experts = 6;
    m.num_experts_per_tok = 3;
    m.moe_intermediate_size = m.shared_expert_intermediate_size = 36;
    config.train.seq_length = 100;
    return config;
  }
};

TEST_F(GpuStart, EveryOperatorAgreesWithTheCpu) {
  Context gpu = Context::gpu(0);
  for (const Precision precision : {Precision::kFp32, Precision::kBf16})
    for (const RunConfig& config : {released_model(precision), odd_model(precision)})
      for (const OperatorCheck& check : operator_checks(config))
        EXPECT_EQ(message_of<Error>([&] { run_check(check, gpu, dtype_of_precision(precision)); }), "") << check.name;
}

TEST_F(GpuStart, TheReleasedModelNeedsNoLeaveAndAnOddOneDoes) {
  Context gpu = Context::gpu(0);
  RunConfig released = released_model(Precision::kBf16), odd = odd_model(Precision::kBf16);
  for (const auto& [name, how] : operator_implementations(gpu, released))
    EXPECT_TRUE(name == "attention" || how.why_slow.empty()) << name << ": " << how.why_slow;  // attention: by build
  const std::string message =
      message_of<ConfigError>([&] { check_nothing_slow(operator_implementations(gpu, odd), odd); });
  for (const char* name : {"matmul", "rms_norm", "gdn_inputs", "gated_delta_rule", "gated_rms_norm", "attention_inputs",
                           "attention", "experts", "swiglu", "lm_head_loss"})
    EXPECT_NE(message.find(name), std::string::npos) << name << " is not in: " << message;
  odd.allow_slow = cases::operator_names();
  EXPECT_NO_THROW(check_nothing_slow(operator_implementations(gpu, odd), odd));
  odd = odd_model(Precision::kFp32);
  EXPECT_NO_THROW(check_nothing_slow(operator_implementations(gpu, odd), odd));
}

TEST_F(GpuStart, StopsARunThatDoesNotFitBeforeItTakesMemory) {
  Context gpu = Context::gpu(0);
  const RunConfig config = released_model(Precision::kBf16);  // 81e9 parameters
  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  TrainingState state(config, mesh);
  const int64_t free_before = gpu_memory().free_bytes;
  const std::string message = message_of<OutOfMemoryError>([&] { state.allocate(gpu); });
  EXPECT_TRUE(message.starts_with("not enough GPU memory: ")) << message;
  for (const char* line : {"\n  weights ", "\n  gradients ", "\n  optimizer state ", "\n  scratch "})
    EXPECT_NE(message.find(line), std::string::npos) << message;
  // Others may use the same GPU meanwhile; the weights alone, which a run takes first, are 150 GiB here.
  EXPECT_GT(gpu_memory().free_bytes, free_before - (int64_t{4} << 30));
}

TEST_F(GpuStart, SaysWhichGpuAndWhichImplementations) {
  Context gpu = Context::gpu(0);
  const RunConfig config = odd_model(Precision::kFp32);
  const ProcessMesh mesh(make_local_communicator(), 1, config.model.num_experts);
  std::FILE* log = std::tmpfile();
  start_on_device(gpu, mesh, config, SelfCheck::kYes, log);
  std::rewind(log);
  std::string text(1 << 14, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), log));
  std::fclose(log);
  EXPECT_TRUE(text.starts_with("device ")) << text;
  for (const char* part : {"GiB free\n", "\n  gated_delta_rule ", "\n  attention ", "\nself-check: "})
    EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace
}  // namespace braid
