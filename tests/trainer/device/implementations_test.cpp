#include "trainer/device/implementations.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "tests/messages.h"

namespace braid {
namespace {

TEST(Implementations, AreThoseOfOperatorsThatAllowSlowKnows) {
  Context cpu = Context::cpu();
  RunConfig config;
  config.train.seq_length = 128;
  config.optimizer.kind = OptimizerKind::kMuon;
  const auto list = operator_implementations(cpu, config);
  const std::vector<std::string> names = cases::operator_names();
  EXPECT_EQ(names.size(), 16u);
  EXPECT_EQ(list.size(), names.size());
  for (const auto& [name, how] : list) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
    EXPECT_EQ(how.name, "CPU") << name;
    EXPECT_EQ(how.why_slow, "") << name;
  }
  config.model.full_attention_interval = 1;
  config.mtp.depth = 0;
  EXPECT_EQ(operator_implementations(cpu, config).size(), names.size() - 4);
}

TEST(Implementations, NothingSlowRunsUnasked) {
  const std::vector<OperatorImplementation> list = {{"experts", {"tensor cores", ""}},
                                                    {"gated_delta_rule", {"general kernels", "heads of 64"}},
                                                    {"attention", {"fp32 kernel", "heads of 20"}}};
  RunConfig config;
  config.precision = Precision::kBf16;
  const auto message = [&] { return testing::message_of<ConfigError>([&] { check_nothing_slow(list, config); }); };
  EXPECT_EQ(message(),
            "this run would be slower than the GPU allows, in gated_delta_rule (heads of 64); attention (heads of 20); "
            "change the model or the build, or allow it: allow_slow: [gated_delta_rule, attention]");
  config.allow_slow = {"attention"};
  EXPECT_NE(message().find("allow_slow: [gated_delta_rule]"), std::string::npos);
  config.allow_slow = {"attention", "gated_delta_rule"};
  EXPECT_EQ(message(), "");
  config.allow_slow = {};
  config.precision = Precision::kFp32;  // for tests: every way is allowed
  EXPECT_EQ(message(), "");
}

}  // namespace
}  // namespace braid
