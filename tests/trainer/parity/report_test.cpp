#include "trainer/parity/report.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/file_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

const ParityOptions kOptions = {.model = "folder", .reference = "file"};

TensorVerdict verdict(const std::string& name, bool passed) {
  return {name, 2e-5, 0.9999999, {1, 2}, 0.5, 0.25, {1e-4, 1 - 1e-6}, passed};
}
ParityReport report_with(bool passed) {
  return {.tensors = {verdict("logits", true), verdict("grad.lm_head.weight", passed)},
          .curves = {judge_curve("loss", {2}, {2}, 1e-6)}};
}
std::string last_line(const std::string& text) { return text.substr(text.rfind('\n', text.size() - 2) + 1); }

TEST(ReportText, EndsWithTheVerdict) {
  EXPECT_EQ(last_line(to_text(report_with(true), kOptions)), "parity: passed (3 tensors)\n");
  EXPECT_EQ(last_line(to_text(report_with(false), kOptions)), "parity: FAILED: 1 of 3 tensors: grad.lm_head.weight\n");
}

TEST(ReportText, MarksTheRowsThatFail) {
  const std::string text = to_text(report_with(false), kOptions);
  EXPECT_EQ(text.find("FAILED"), text.find("FAILED", text.find("\ngrad.lm_head.weight"))) << text;
  expect_contains(text, "2.000e-05");
  expect_contains(text, "[1, 2]: 0.5, 0.25");
}

TEST(ReportText, AlignsItsColumns) {
  const std::string text = to_text(report_with(true), kOptions);
  const auto column = [&](const std::string& row) {
    const size_t line = text.find("\n" + row);
    return text.find("0.99999", line) - line;
  };
  EXPECT_EQ(column("logits"), column("grad.lm_head.weight")) << text;
}

TEST(ReportText, SaysWhatWasNotCompared) {
  ParityReport report = report_with(true);
  report.not_compared = {"a", "b"};
  report.mtp_compared = 5;
  report.mtp_positions = 8;
  const std::string text = to_text(report, kOptions);
  expect_contains(text, "not compared: 2 gradients that the reference does not hold: a, b\n");
  expect_contains(text, "mtp_logits: 5 of 8 positions compared");
}

TEST(ReportJson, HoldsEveryMeasure) {
  const auto json = nlohmann::json::parse(to_json(report_with(false), kOptions));
  EXPECT_EQ(json["passed"], false);
  EXPECT_EQ(json["model"], "folder");
  ASSERT_EQ(json["tensors"].size(), 2);
  const auto& t = json["tensors"][1];
  EXPECT_EQ(t["name"], "grad.lm_head.weight");
  EXPECT_EQ(t["relative_rms"], 2e-5);
  EXPECT_EQ(t["worst_index"], (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(t["worst_got"], 0.5);
  EXPECT_EQ(t["worst_expected"], 0.25);
  EXPECT_EQ(t["cosine"], 0.9999999);
  EXPECT_EQ(t["bound"], 1e-4);
  EXPECT_EQ(t["passed"], false);
  EXPECT_EQ(json["loss"]["got"], std::vector<double>{2});
  EXPECT_EQ(json["loss"]["passed"], true);
  EXPECT_EQ(json["not_compared"]["count"], 0);
}

TEST(ReportJson, IsValidWhateverTheNumbers) {
  ParityReport report{.tensors = {verdict("logits", false)}};
  report.tensors[0].relative_rms = std::nan("");
  report.tensors[0].bound.cosine = -std::numeric_limits<double>::infinity();
  const auto json = nlohmann::json::parse(to_json(report, {.model = "not utf-8: \xff"}));
  EXPECT_TRUE(json["tensors"][0]["relative_rms"].is_null());
  EXPECT_TRUE(json["tensors"][0]["cosine_bound"].is_null());
  EXPECT_TRUE(json["loss"].is_null());
}

}  // namespace
}  // namespace braid
