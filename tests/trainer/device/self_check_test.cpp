#include "trainer/device/self_check.h"

#include "kernels/core/copy.h"
#include "kernels/rms_norm.h"
#include "tests/testing.h"
#include "trainer/config/config_reader.h"

namespace braid {
namespace {

using namespace braid::testing;

RunConfig small_run() {
  RunConfig c;
  c.train.seq_length = 64;
  ModelConfig& m = c.model;
  m.vocab_size = 130;
  m.hidden_size = 48;
  m.num_hidden_layers = 4;
  m.num_attention_heads = 4;
  m.num_key_value_heads = 2;
  m.head_dim = 16;
  m.partial_rotary_factor = 0.5;
  m.linear_num_key_heads = 2;
  m.linear_num_value_heads = 4;
  m.linear_key_head_dim = 16;
  m.linear_value_head_dim = 24;
  m.num_experts = 8;
  m.num_experts_per_tok = 2;
  m.moe_intermediate_size = 32;
  m.shared_expert_intermediate_size = 32;
  return c;
}

std::string error_of(const OperatorCheck& check) {
  Context device = Context::cpu();
  try {
    run_check(check, device, DType::kF32);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kEnvironment);
    return e.what();
  }
  return "";
}

using cases::Trial, cases::Var, cases::normal;

OperatorCheck check_of(const char* name, const char* label, std::function<void(Trial&)> declare) {
  return {name, {label, std::move(declare)}};
}

// A right operator; `spoil` then changes what it wrote on the device.
OperatorCheck norm_that_is(const std::function<void(Tensor)>& spoil) {
  return check_of("rms_norm", "fp32, width 32", [spoil](Trial& t) {
    const Var x = t.input("x", {40, 32}, normal()), weight = t.input("weight", {32}, normal(), cases::Storage::kWide);
    const Var y = t.output("y", {40, 32}), rstd = t.output("rstd", {40}, cases::Storage::kWide);
    t.forward("rms_norm_forward", {rstd, y}, [=](Context& ctx) {
      rms_norm_forward(ctx, y, rstd, x, weight, 1e-6);
      if (y.dtype() == DType::kF32) spoil(y);
    });
  });
}

// The CPU in fp32 as the device: every check of the table holds for a device that is right.
TEST(SelfCheck, EveryOperatorAgreesWhereItIsRight) {
  RunConfig configs[] = {small_run(), small_run(), small_run()};
  configs[1].mtp.depth = 0;
  configs[1].model.layer_types = {LayerType::kLinearAttention, LayerType::kLinearAttention, LayerType::kLinearAttention,
                                  LayerType::kLinearAttention};
  configs[1].model.norm_topk_prob = false;
  configs[2].model.full_attention_interval = 1;
  configs[2].model.num_experts = configs[2].model.num_experts_per_tok = 3;
  configs[2].optimizer.kind = OptimizerKind::kMuon;
  for (const RunConfig& config : configs)
    for (const OperatorCheck& check : operator_checks(config)) EXPECT_EQ(error_of(check), "") << check.name;
}

TEST(SelfCheck, ChecksWhatTheRunUses) {
  auto names = [](const RunConfig& config) {
    std::string all;
    for (const OperatorCheck& check : operator_checks(config)) all += " " + check.name;
    return all;
  };
  RunConfig config = small_run();
  config.optimizer.kind = OptimizerKind::kMuon;
  for (const std::string& name : cases::operator_names())
    EXPECT_NE(names(config).find(name), std::string::npos) << name;
  config.optimizer.kind = OptimizerKind::kAdamW;
  config.mtp.depth = 0;
  config.model.full_attention_interval = 1;
  EXPECT_EQ(names(config).find("muon"), std::string::npos);
  EXPECT_EQ(names(config).find("gated_delta_rule"), std::string::npos);
  EXPECT_EQ(names(config).find("mtp"), std::string::npos);
}

TEST(SelfCheck, SaysWhatDiffers) {
  EXPECT_EQ(error_of(norm_that_is([](Tensor) {})), "");
  const std::string all_off = error_of(norm_that_is([](Tensor y) {
    for (int64_t i = 0; i < y.numel(); ++i) y.data<float>()[i] *= 1.5F;
  }));
  EXPECT_EQ(all_off,
            "self-check: rms_norm_forward (fp32, width 32): y differs from the CPU by 0.5 relative RMS (allowed "
            "0.0002); --skip-selfcheck goes on all the same");
  EXPECT_NE(error_of(norm_that_is([](Tensor y) { y.data<float>()[77] = NAN; })).find("element 77 of y is not a number"),
            std::string::npos);
  EXPECT_NE(error_of(norm_that_is([](Tensor y) { y.data<float>()[5] = 0; })).find("y differs"), std::string::npos);
}

// One element among many is lost in a mean.
TEST(SelfCheck, SeesOneElementAmongMany) {
  auto check_with = [](double first) {
    return check_of("convert", "fp32", [first](Trial& t) {
      const Var x = t.in_out("to", {1 << 20}, normal());
      t.forward("convert", {x}, [=](Context&) {
        Tensor to = x;
        if (to.dtype() == DType::kF32) to.data<float>()[0] += static_cast<float>(first);
      });
    });
  };
  EXPECT_EQ(error_of(check_with(1e-4)), "");
  EXPECT_NE(error_of(check_with(0.1)).find("element 0 of to is"), std::string::npos);
}

TEST(SelfCheck, ComparesIntegersExactly) {
  const OperatorCheck check = check_of("router", "fp32", [](Trial& t) {
    const bool is_device = t.input("x", {1}, normal()).dtype() == DType::kF32;
    const Var id = t.in_out("expert_id", t.input("ids", {2}, std::vector<int32_t>{3, is_device ? 4 : 5}));
    t.forward("router_forward", {id}, [](Context&) {});
  });
  EXPECT_NE(error_of(check).find("router_forward (fp32): element 1 of expert_id is 4, on the CPU 5"),
            std::string::npos);
}

// Backward is held to what the reference makes of the device's own, rounded forward results: one step cannot hide
// behind the error of the one before, nor be blamed for it.
TEST(SelfCheck, EveryStepStartsFromTheSameNumbers) {
  const OperatorCheck check = check_of("rms_norm", "fp32", [](Trial& t) {
    const Var x = t.input("x", {64}, normal()), y = t.output("y", {64}), z = t.output("z", {64});
    t.forward("first", {y}, [=](Context& ctx) {
      copy(ctx, y, x);
      Tensor out = y;
      if (out.dtype() == DType::kF32)
        for (int64_t i = 0; i < 64; ++i) out.data<float>()[i] *= 1 + 1.5e-4F;  // allowed
    });
    t.backward("second", {z}, [=](Context& ctx) {
      copy(ctx, z, y);
      Tensor out = z;
      if (out.dtype() == DType::kF32)
        for (int64_t i = 0; i < 64; ++i) out.data<float>()[i] *= 1 + 1.5e-4F;  // allowed, but not both
    });
  });
  EXPECT_EQ(error_of(check), "");
}

TEST(SelfCheck, NamesAnOperatorThatThrows) {
  const OperatorCheck check = check_of("experts", "fp32", [](Trial& t) {
    const Var x = t.output("x", {1});
    t.forward("experts_forward", {x}, [=](Context&) {
      if (x.dtype() == DType::kF32) throw EnvironmentError("an illegal memory access was encountered");
    });
  });
  EXPECT_EQ(
      error_of(check),
      "self-check: experts (fp32): an illegal memory access was encountered; --skip-selfcheck goes on all the same");
}

}  // namespace
}  // namespace braid
