#include "kernels/matmul_algorithms.h"

#include "tests/messages.h"
#include "tests/testing.h"

namespace braid {
namespace {

using namespace braid::testing;

const AlgorithmScope kH200 = {"NVIDIA H200", 130100};
constexpr Product kForward = {DType::kBF16, DType::kBF16, Transpose::kNo, Transpose::kYes, Accumulate::kNo, 8, 16, 32};
constexpr Product kGradient = {DType::kBF16, DType::kF32, Transpose::kYes, Transpose::kNo, Accumulate::kYes, 16, 32, 8};

AlgorithmTable two_entries() {
  AlgorithmTable table;
  table.scopes[kH200] = {{kForward, {{0x42, 0, 0xfedcba9876543210}, 0.25, 0.5}}, {kGradient, {{1}, 1.5, 1.5}}};
  return table;
}

TEST(AlgorithmTable, ReadsWhatItWrites) {
  const AlgorithmTable table = AlgorithmTable::parse(two_entries().text(), "here");
  ASSERT_EQ(table.scopes.size(), 1u);
  const auto& entries = table.scopes.at(kH200);
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries.at(kForward).words, (std::array<uint64_t, 8>{0x42, 0, 0xfedcba9876543210}));
  EXPECT_EQ(entries.at(kForward).ms, 0.25);
  EXPECT_EQ(entries.at(kForward).proposed_ms, 0.5);
  EXPECT_EQ(entries.at(kGradient).words, (std::array<uint64_t, 8>{1}));
  EXPECT_EQ(table.text(), two_entries().text());
}

TEST(AlgorithmTable, SaysWhatIsWrongAndWhere) {
  const std::string scope = "# a comment\n[NVIDIA H200, cuBLASLt 130100]\n",
                    start = "BF16 BF16 nt = 8 16 32 : 1 1 ms :";
  auto expect_refused = [](const std::string& text, const std::string& message) {
    expect_contains(message_of<ConfigError>([&] { AlgorithmTable::parse(text, "file"); }), message);
  };
  expect_refused(start + " 42\n", "file:1: a product before the first [DEVICE, cuBLASLt VERSION]");
  expect_refused("[NVIDIA H200]\n", "file:1: expected [DEVICE, cuBLASLt VERSION]");
  expect_refused("[NVIDIA H200, cuBLASLt x]\n", "file:1: the version is no number");
  expect_refused(scope + start + "\n", "file:3: the algorithm is missing");
  expect_refused(scope + start + " 1 2 3 4 5 6 7 8 9\n", "file:3: more than 8 words");
  expect_refused(scope + start + " 4x\n", "file:3: a hexadecimal word is missing");
  expect_refused(scope + "BF16 F8 nt = 8 16 32 : 1 1 ms : 42\n", "file:3: F8 is no dtype of a product");
  expect_refused(scope + "BF16 BF16 nx = 8 16 32 : 1 1 ms : 42\n", "file:3: transposes are two letters of t and n");
  expect_refused(scope + "BF16 BF16 nt - 8 16 32 : 1 1 ms : 42\n", "file:3: expected = or +=, not -");
  expect_refused(scope + start + " 42\n" + start + " 42\n", "file:4: BF16 BF16 nt = 8 16 32 stands twice");
}

TEST(AlgorithmTable, ShipsForHopper) {
  std::map<std::string, size_t> products;
  for (const auto& [scope, entries] : AlgorithmTable::shipped().scopes) {
    products[scope.device] += entries.size();
    for (const auto& [product, algorithm] : entries) {
      EXPECT_TRUE(is_worth_tuning(product)) << product.name();
      EXPECT_LE(algorithm.ms, algorithm.proposed_ms) << product.name();
    }
  }
  EXPECT_GE(products["NVIDIA H200"], 30u);
  EXPECT_GE(products["NVIDIA H100 80GB HBM3"], 30u);
}

TEST(AlgorithmTable, NothingIsChosenOnTheCpu) {
  Context cpu = Context::cpu();
  EXPECT_EQ(matmul_algorithm_counts(cpu).stored + matmul_algorithm_counts(cpu).proposed, 0);
  AlgorithmTable table;
  expect_contains(message_of<EnvironmentError>([&] { tune_matmul(cpu, table, [](const std::string&) {}); }),
                  "this is none");
}

}  // namespace
}  // namespace braid
