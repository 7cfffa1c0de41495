#include "trainer/parity/reference_file.h"

#include <cmath>
#include <limits>

#include "model/parameter_layout.h"
#include "tests/model/tiny_model.h"
#include "tests/trainer/parity/reference_writer.h"

namespace braid {
namespace {

using namespace braid::testing;

const ModelConfig kModel = tiny_model_config();
const int64_t kV = kModel.vocab_size;
constexpr int64_t kB = 2, kT = 4;
const std::string kExperts = "model.layers.0.mlp.experts.";

class ForwardReferenceTest : public FolderTest {
 protected:
  ReferenceContent content_ = {{{"input_ids", tensor_of<int64_t>({1, 2, 3, 4, 5, 6, 7, 8}, {kB, kT})},
                                {"logits", zeros({kB, kT, kV}, DType::kF32)},
                                {"loss", zeros({1}, DType::kF32)},
                                {"grad.model.norm.weight", zeros({kModel.hidden_size}, DType::kF32)}},
                               {}};

  ForwardReference open(bool with_mtp = false) {
    content_.write(path("reference.safetensors"));
    ForwardReference reference(path("reference.safetensors"));
    reference.match(kV, parameter_table(kModel, MtpConfig{.depth = with_mtp ? 1 : 0}));
    return reference;
  }
  void expect_refused(const std::string& sentence, bool with_mtp = false) {
    const std::string message = message_of<DataError>([&] { open(with_mtp); });
    expect_contains(message, sentence);
    expect_contains(message, path("reference.safetensors"));
  }
  // One packed row.
  void pack(const std::vector<int64_t>& cu_seqlens) {
    content_.tensors["input_ids"] = tensor_of<int64_t>({1, 2, 3, 4}, {1, kT});
    content_.tensors["logits"] = zeros({1, kT, kV}, DType::kF32);
    content_.tensors["cu_seqlens"] = tensor_of(cu_seqlens, {static_cast<int64_t>(cu_seqlens.size())});
  }
};

TEST_F(ForwardReferenceTest, MakesABatchOfRows) {
  const ForwardReference reference = open();
  EXPECT_EQ(reference.batch.num_rows, kB);
  EXPECT_EQ(reference.batch.row_tokens, kT);
  EXPECT_EQ(reference.batch.tokens, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(reference.batch.targets, (std::vector<int64_t>{2, 3, 4, -1, 6, 7, 8, -1}));
  EXPECT_EQ(reference.batch.segments.offsets, (std::vector<int64_t>{0, 4, 8}));
  EXPECT_FALSE(reference.names_mtp());
}

// The loss of a packed row counts every next token, also that of another document.
TEST_F(ForwardReferenceTest, PackedRowsHaveTargetsAcrossDocuments) {
  pack({0, 1, 4});
  const ForwardReference reference = open();
  EXPECT_EQ(reference.batch.targets, (std::vector<int64_t>{2, 3, 4, -1}));
  EXPECT_EQ(reference.batch.segments.offsets, (std::vector<int64_t>{0, 1, 4}));
}

TEST_F(ForwardReferenceTest, NamesGradientsThatAreNotThere) {
  const auto table = parameter_table(kModel, MtpConfig{.depth = 0});
  EXPECT_EQ(open().not_compared.size(), table.size() - 1);
  content_.tensors.erase("grad.model.norm.weight");
  EXPECT_TRUE(open().not_compared.empty()) << "a file without gradients compares none, and says nothing about it";
}

TEST_F(ForwardReferenceTest, TakesFusedExperts) {
  const int64_t E = kModel.num_experts, F = kModel.moe_intermediate_size, C = kModel.hidden_size;
  content_.tensors["grad." + kExperts + "gate_up_proj"] = zeros({E, 2 * F, C}, DType::kF32);
  const auto gradients = open().gradients;
  ASSERT_EQ(gradients.size(), 2);
  EXPECT_EQ(gradients[0].parameter, kExperts + "gate_up_proj");
  EXPECT_EQ(gradients[0].first, 0);
  EXPECT_EQ(gradients[0].numel, E * 2 * F * C);
}

TEST_F(ForwardReferenceTest, TakesSingleExperts) {
  const int64_t E = kModel.num_experts, F = kModel.moe_intermediate_size, C = kModel.hidden_size;
  const size_t before = open().not_compared.size();
  content_.tensors["grad." + kExperts + "3.gate_proj.weight"] = zeros({F, C}, DType::kF32);
  content_.tensors["grad." + kExperts + "3.up_proj.weight"] = zeros({F, C}, DType::kF32);
  content_.tensors["grad." + kExperts + "5.down_proj.weight"] = zeros({C, F}, DType::kF32);
  const ForwardReference reference = open();
  ASSERT_EQ(reference.gradients.size(), 4);
  EXPECT_EQ(reference.gradients[0].name, "grad." + kExperts + "3.gate_proj.weight");
  EXPECT_EQ(reference.gradients[0].first, 3 * 2 * F * C);
  EXPECT_EQ(reference.gradients[1].first, 3 * 2 * F * C + F * C);
  EXPECT_EQ(reference.gradients[2].parameter, kExperts + "down_proj");
  EXPECT_EQ(reference.gradients[2].first, 5 * C * F);
  EXPECT_EQ(reference.not_compared.size(), before - 2 + (2 * E - 2) + (E - 1)) << "the other experts, one by one";
}

TEST_F(ForwardReferenceTest, KnowsWhenTheMtpBlockIsMeant) {
  content_.tensors["grad.mtp.fc.weight"] = zeros({kModel.hidden_size, 2 * kModel.hidden_size}, DType::kF32);
  EXPECT_TRUE(open(true).names_mtp());
  expect_refused("\"grad.mtp.fc.weight\", which is no part of a reference for this model");
  content_.tensors.erase("grad.mtp.fc.weight");
  content_.tensors["mtp_logits"] = zeros({kB, kT - 1, kV}, DType::kF32);
  EXPECT_TRUE(open(true).names_mtp());
}

TEST_F(ForwardReferenceTest, RefusesWhatIsNoReference) {
  write_bytes(path("text"), "not a safetensors file, but long enough");
  EXPECT_THROW(ForwardReference{path("text")}, DataError);
  EXPECT_THROW(ForwardReference{path("absent")}, DataError);
  content_.tensors.erase("input_ids");
  expect_refused("holds no input_ids");
}

TEST_F(ForwardReferenceTest, RefusesAFileWithoutLogits) {
  content_.tensors.erase("logits");
  expect_refused("holds no logits");
}

TEST_F(ForwardReferenceTest, RefusesUnknownNames) {
  content_.tensors["logit"] = zeros({1}, DType::kF32);
  expect_refused("holds \"logit\", which is no part of a reference");
}

TEST_F(ForwardReferenceTest, RefusesGradientsOfUnknownParameters) {
  content_.tensors["grad.model.layers.7.input_layernorm.weight"] = zeros({kModel.hidden_size}, DType::kF32);
  expect_refused("\"grad.model.layers.7.input_layernorm.weight\", which is no part of a reference for this model");
}

TEST_F(ForwardReferenceTest, RefusesAnExpertThatTheModelHasNot) {
  content_.tensors["grad." + kExperts + "6.down_proj.weight"] =
      zeros({kModel.hidden_size, kModel.moe_intermediate_size}, DType::kF32);
  expect_refused("experts.6.down_proj.weight");
}

TEST_F(ForwardReferenceTest, RefusesOtherDtypes) {
  content_.tensors["logits"] = zeros({kB, kT, kV}, DType::kF64);
  expect_refused("logits is F64 (2, 4, 11), expected F32 (2, 4, 11)");
}

TEST_F(ForwardReferenceTest, RefusesTokensThatAreNoI64) {
  content_.tensors["input_ids"] = zeros({kB, kT}, DType::kI32);
  expect_refused("input_ids is I32 (2, 4), expected I64 (*, *)");
}

TEST_F(ForwardReferenceTest, RefusesOtherShapes) {
  content_.tensors["logits"] = zeros({kB, kT, kV + 1}, DType::kF32);
  expect_refused("logits is F32 (2, 4, 12), expected F32 (2, 4, 11)");
}

TEST_F(ForwardReferenceTest, RefusesMisshapedGradients) {
  content_.tensors["grad.model.norm.weight"] = zeros({kModel.hidden_size, 1}, DType::kF32);
  expect_refused("grad.model.norm.weight is F32 (12, 1), expected F32 (12)");
}

TEST_F(ForwardReferenceTest, RefusesALossOfSeveralNumbers) {
  content_.tensors["loss"] = zeros({2}, DType::kF32);
  expect_refused("loss is F32 (2), expected F32 (1)");
}

TEST_F(ForwardReferenceTest, RefusesEmptyBatches) {
  content_.tensors["input_ids"] = zeros({kB, 0}, DType::kI64);
  expect_refused("input_ids is I64 (2, 0), expected I64 (*, *)");
}

TEST_F(ForwardReferenceTest, RefusesIdsOutsideTheVocabulary) {
  for (int64_t bad : {int64_t{-1}, kV}) {
    content_.tensors["input_ids"].data<int64_t>()[5] = bad;
    expect_refused(concat("input_ids holds ", bad, " at element 5, the model's vocabulary has 11"));
  }
}

TEST_F(ForwardReferenceTest, RefusesBrokenDocuments) {
  for (const std::vector<int64_t>& bad : std::vector<std::vector<int64_t>>{
           {1, 4}, {0, 3}, {0, 2, 2, 4}, {0, 3, 2, 4}, {0, 5}, {0}, {0, 2, 5, 4}, {0, 0, 4}}) {
    pack(bad);
    expect_refused("cu_seqlens must increase strictly from 0 to the 4 tokens of the row");
  }
}

TEST_F(ForwardReferenceTest, RefusesDocumentsOfSeveralRows) {
  content_.tensors["cu_seqlens"] = tensor_of<int64_t>({0, 4, 8}, {3});
  expect_refused("has cu_seqlens and 2 rows, expected one packed row");
}

TEST_F(ForwardReferenceTest, RefusesMtpLogitsOfNothing) {
  pack({0, 1, 2, 3, 4});
  content_.tensors["mtp_logits"] = zeros({1, kT - 1, kV}, DType::kF32);
  expect_refused("has mtp_logits, but no token is followed by another of its document", true);
}

TEST_F(ForwardReferenceTest, RefusesALossOfSingleTokens) {
  content_.tensors["input_ids"] = tensor_of<int64_t>({1, 2}, {2, 1});
  content_.tensors["logits"] = zeros({2, 1, kV}, DType::kF32);
  expect_refused("rows of one token have none");
  content_.tensors.erase("loss");
  expect_refused("rows of one token have none");
  content_.tensors.erase("grad.model.norm.weight");
  EXPECT_EQ(open().batch.num_rows, 2);
}

TEST_F(ForwardReferenceTest, RefusesNumbersThatAreNotFinite) {
  for (float bad : {std::nanf(""), -std::numeric_limits<float>::infinity()}) {
    content_.tensors["logits"].data<float>()[7] = bad;
    const ForwardReference reference = open();
    Tensor block = zeros({4}, DType::kF32);
    reference.file.read("logits", 0, block);
    expect_contains(message_of<DataError>([&] { reference.file.read("logits", 4, block); }),
                    "logits: element 7 is not finite");
  }
}

class TrainingReferenceTest : public FolderTest {
 protected:
  ReferenceContent content_ = {{{"batches", tensor_of<int64_t>({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1}, {2, 2, 3})},
                                {"losses", tensor_of<double>({2, 1}, {2})},
                                {"grad_norms", tensor_of<double>({0.5, 0.25}, {2})}},
                               {}};
  TrainingReference open() {
    content_.write(path("train.safetensors"));
    return TrainingReference(path("train.safetensors"), kV);
  }
  void expect_refused(const std::string& sentence) {
    expect_contains(message_of<DataError>([&] { open(); }), path("train.safetensors") + ": " + sentence);
  }
};

TEST_F(TrainingReferenceTest, HoldsABatchPerStep) {
  const TrainingReference reference = open();
  ASSERT_EQ(reference.batches.size(), 2);
  EXPECT_EQ(reference.batches[1].tokens, (std::vector<int64_t>{7, 8, 9, 10, 0, 1}));
  EXPECT_EQ(reference.batches[1].targets, (std::vector<int64_t>{8, 9, -1, 0, 1, -1}));
  EXPECT_EQ(reference.losses, (std::vector<double>{2, 1}));
  EXPECT_EQ(reference.grad_norms, (std::vector<double>{0.5, 0.25}));
}

TEST_F(TrainingReferenceTest, ReadsSettingsOrTakesDefaults) {
  const OptimizerConfig defaults = open().optimizer;
  EXPECT_EQ(defaults.lr, 1e-3);
  EXPECT_EQ(defaults.beta1, 0.9);
  EXPECT_EQ(defaults.beta2, 0.95);
  EXPECT_EQ(defaults.eps, 1e-8);
  EXPECT_EQ(defaults.weight_decay, 0.1);
  EXPECT_EQ(defaults.max_grad_norm, 1.0);
  EXPECT_EQ(defaults.norm_weight_decay, NormWeightDecay::kNone);
  content_.metadata = {{"lr", "0.01"},          {"beta1", "0.8"},         {"beta2", "0.99"},   {"eps", "1e-06"},
                       {"weight_decay", "0.0"}, {"max_grad_norm", "2.5"}, {"torch", "2.15.0"}, {"format", "pt"}};
  const OptimizerConfig read = open().optimizer;
  EXPECT_EQ(read.lr, 0.01);
  EXPECT_EQ(read.beta1, 0.8);
  EXPECT_EQ(read.beta2, 0.99);
  EXPECT_EQ(read.eps, 1e-6);
  EXPECT_EQ(read.weight_decay, 0);
  EXPECT_EQ(read.max_grad_norm, 2.5);
}

TEST_F(TrainingReferenceTest, RefusesSettingsThatAreNoNumbers) {
  for (const char* bad : {"", "fast", "0.1 ", "-1", "nan", "inf", "1e999"}) {
    content_.metadata = {{"lr", bad}};
    expect_refused("metadata lr is ");
  }
  content_.metadata = {{"beta2", "1"}};
  expect_refused("metadata beta2 is \"1\", expected a number of at least 0 and below 1");
}

TEST_F(TrainingReferenceTest, RefusesOtherTensors) {
  content_.tensors["logits"] = zeros({1}, DType::kF32);
  expect_refused("holds \"logits\"");
}

TEST_F(TrainingReferenceTest, RefusesOtherShapesAndDtypes) {
  content_.tensors["losses"] = zeros({3}, DType::kF64);
  expect_refused("losses is F64 (3), expected F64 (2)");
  content_.tensors["losses"] = zeros({2}, DType::kF32);
  expect_refused("losses is F32 (2), expected F64 (2)");
  content_.tensors["batches"] = zeros({2, 6}, DType::kI64);
  expect_refused("batches is I64 (2, 6), expected I64 (*, *, *)");
}

TEST_F(TrainingReferenceTest, RefusesRowsOfOneToken) {
  content_.tensors["batches"] = zeros({2, 2, 1}, DType::kI64);
  expect_refused("batches has rows of one token");
}

TEST_F(TrainingReferenceTest, RefusesIdsOutsideTheVocabularyAndNan) {
  content_.tensors["batches"].data<int64_t>()[11] = kV;
  expect_refused("batches holds 11 at element 11");
  content_.tensors["grad_norms"].data<double>()[1] = std::nan("");
  expect_refused("grad_norms: element 1 is not finite");
}

}  // namespace
}  // namespace braid
