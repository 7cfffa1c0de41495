#include "trainer/parity/parity.h"

#include <cmath>

#include "kernels/core/philox.h"
#include "kernels/matmul.h"
#include "tests/model/tiny_model.h"
#include "tests/trainer/huggingface/model_folder_testing.h"
#include "tests/trainer/parity/reference_writer.h"
#include "trainer/huggingface/huggingface_reader.h"

namespace braid {
namespace {

using namespace braid::testing;

std::vector<int64_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(philox(seed, 0, uint64_t(i))[0] % uint64_t(vocab_size));
  return tokens;
}

// The model of a folder in fp64 on rows that are whole documents, or on one row of packed ones; its next-token loss
// counts every token but the last of a row.
struct Oracle {
  Batch batch;
  TinyModel tiny;

  Oracle(const std::string& folder, const ModelConfig& config, bool with_mtp, std::vector<int64_t> tokens, int64_t B,
         const std::vector<int64_t>& documents = {})
      : batch(make_batch(std::move(tokens), B, documents)),
        tiny(config, MtpConfig{.depth = with_mtp ? 1 : 0}, BalanceConfig{.loss_weight = 0}, B, batch.row_tokens) {
    load_weights(tiny.ctx, HuggingFaceReader(folder), tiny.layout, tiny.weights);
  }

  static Batch make_batch(std::vector<int64_t> tokens, int64_t B, const std::vector<int64_t>& documents) {
    const int64_t T = static_cast<int64_t>(tokens.size()) / B;
    Batch batch{B, T, std::move(tokens), {}, Segments::whole_rows(B, T)};
    for (int64_t i = 0; i < B * T; ++i) batch.targets.push_back(i % T == T - 1 ? -1 : batch.tokens[i + 1]);
    if (!documents.empty()) batch.segments.offsets = documents;
    batch.complete();
    return batch;
  }

  // Mean loss; gradients are set.
  double run() {
    const double targets = double(batch.num_rows * (batch.row_tokens - 1));
    tiny.zero_gradients();
    tiny.model.forward(tiny.ctx, batch);
    tiny.balance.begin_step(tiny.ctx, tiny.tokens_per_layer(batch.counts));
    tiny.balance.prepare_backward(tiny.ctx, tiny.balance_gradients, tiny.model.routers());
    return tiny.model.losses_and_backward(tiny.ctx, {1 / targets, 0}, tiny.balance_gradients).lm / targets;
  }

  Tensor logits(const Tensor& hidden) {
    Tensor out = zeros_f64({hidden.dim(0), tiny.config.vocab_size});
    linear_forward(tiny.ctx, out, hidden, tiny.model.weights().lm_head);
    return converted(out, DType::kF32);
  }

  // Logits of all rows, and of the MTP block without the last position of each row.
  void write_logits(ReferenceContent& to) {
    const int64_t B = batch.num_rows, T = batch.row_tokens, V = tiny.config.vocab_size;
    to.tensors["input_ids"] = tensor_of(batch.tokens, {B, T});
    to.tensors["logits"] = logits(tiny.model.hidden()).view({B, T, V});
    if (!tiny.model.has_mtp()) return;
    const Tensor all = logits(tiny.model.mtp_hidden());
    to.tensors["mtp_logits"] = zeros({B, T - 1, V}, DType::kF32);
    float* out = to.tensors["mtp_logits"].data<float>();
    for (int64_t row = 0; row < B; ++row)
      std::memcpy(out + row * (T - 1) * V, all.data<float>() + row * T * V, (T - 1) * V * sizeof(float));
  }

  // Gradients of the model's own parameters, experts as they are or one by one.
  void write_gradients(ReferenceContent& to, ExpertLayout layout) {
    tiny.model.gradients().visit(tiny.config, [&](const std::string& name, Tensor& gradient, Shape shape, Owner owner,
                                                  Init init, Decay decay, const auto&...) {
      if (name.starts_with("mtp.")) return;
      const Parameter p{name, shape, owner, init, decay};
      const Tensor flat = converted(gradient, DType::kF32).view({gradient.numel()});
      int64_t first = 0;
      for (const StoredTensor& t :
           layout == ExpertLayout::kFused ? std::vector<StoredTensor>{{name, shape}} : stored_tensors(p)) {
        to.tensors["grad." + t.name] = flat.rows(first, first + t.shape.numel()).view(t.shape);
        first += t.shape.numel();
      }
    });
  }
};

class ParityTest : public FolderTest {
 protected:
  static constexpr int64_t kB = 2, kT = 9;
  ModelConfig config_ = tiny_model();
  ReferenceContent content_;

  ParityOptions options(Precision precision = Precision::kFp32) const {
    return {.model = path("model"), .reference = path("reference.safetensors"), .precision = precision};
  }
  void make_model(bool with_mtp) { make_model_folder(config_, DType::kF32, with_mtp).write(path("model")); }

  // A reference with everything: two rows, MTP, loss, gradients.
  void make_reference(ExpertLayout layout = ExpertLayout::kPerExpert) {
    make_model(true);
    Oracle oracle(path("model"), config_, true, random_tokens(kB * kT, config_.vocab_size, 3), kB);
    content_.tensors["loss"] = tensor_of<float>({float(oracle.run())}, {1});
    oracle.write_logits(content_);
    oracle.write_gradients(content_, layout);
  }
  ParityReport check(Precision precision = Precision::kFp32) {
    content_.write(path("reference.safetensors"));
    Context ctx = Context::cpu();
    return check_forward(ctx, options(precision));
  }
  static std::vector<std::string> failures(const ParityReport& report) {
    std::vector<std::string> names;
    for (const TensorVerdict& t : report.tensors)
      if (!t.passed) names.push_back(t.name);
    for (const CurveVerdict& c : report.curves)
      if (!c.passed) names.push_back(c.name);
    EXPECT_EQ(report.passed(), names.empty());
    return names;
  }
};

TEST_F(ParityTest, AcceptsWhatTheModelComputes) {
  for (ExpertLayout layout : {ExpertLayout::kPerExpert, ExpertLayout::kFused}) {
    content_ = {};
    make_reference(layout);
    for (Precision precision : {Precision::kFp32, Precision::kFp64}) {
      const ParityReport report = check(precision);
      EXPECT_EQ(failures(report), std::vector<std::string>());
      EXPECT_EQ(report.tensors.size() + report.curves.size() + 1, content_.tensors.size()) << "all but input_ids";
      EXPECT_EQ(report.mtp_compared, kB * (kT - 1));
      const double rounding = precision == Precision::kFp64 ? 1e-7 : 1e-4;  // that of the file is F32
      for (const TensorVerdict& t : report.tensors) EXPECT_LT(t.relative_rms, rounding) << t.name;
    }
    for (const std::string& name : check().not_compared) EXPECT_TRUE(name.starts_with("mtp.")) << name;
  }
}

// Each tensor is compared with its own: off by 1 %, it fails, and it alone.
TEST_F(ParityTest, FindsTheTensorThatDiffers) {
  make_reference();
  for (auto& [name, tensor] : content_.tensors) {
    if (tensor.dtype() != DType::kF32) continue;
    const Tensor before = copy_of(tensor);
    for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data<float>()[i] *= 1.01f;
    EXPECT_EQ(failures(check()), std::vector<std::string>{name});
    tensor = before;
  }
  EXPECT_TRUE(check().passed());
}

TEST_F(ParityTest, ComparesTheTokensOfTheFile) {
  make_reference();
  int64_t& token = content_.tensors["input_ids"].data<int64_t>()[2];
  token = (token + 1) % config_.vocab_size;
  EXPECT_GT(failures(check()).size(), 3);
}

TEST_F(ParityTest, TakesWhatTheFileHolds) {
  make_reference();
  std::erase_if(content_.tensors, [](const auto& t) { return t.first != "input_ids" && t.first != "logits"; });
  const ParityReport report = check();
  EXPECT_TRUE(report.passed());
  EXPECT_EQ(report.tensors.size(), 1);
  EXPECT_TRUE(report.curves.empty());
  EXPECT_TRUE(report.not_compared.empty());
}

// Documents of a packed row are computed alone; MTP positions at their ends are nobody's business.
TEST_F(ParityTest, KeepsPackedDocumentsApart) {
  make_model(true);
  const std::vector<int64_t> cu_seqlens = {0, 4, 5, 9}, tokens = random_tokens(kT, config_.vocab_size, 5);
  Oracle packed(path("model"), config_, true, tokens, 1, cu_seqlens);
  content_.tensors["loss"] = tensor_of<float>({float(packed.run())}, {1});
  packed.write_logits(content_);
  packed.write_gradients(content_, ExpertLayout::kPerExpert);
  content_.tensors["cu_seqlens"] = tensor_of(cu_seqlens, {4});
  for (size_t d = 0; d + 1 < cu_seqlens.size(); ++d) {
    const int64_t begin = cu_seqlens[d], count = cu_seqlens[d + 1] - begin;
    Oracle alone(path("model"), config_, true, {tokens.begin() + begin, tokens.begin() + begin + count}, 1);
    alone.run();
    const int64_t V = config_.vocab_size;
    std::memcpy(content_.tensors["logits"].data<float>() + begin * V,
                alone.logits(alone.tiny.model.hidden()).data<float>(), count * V * sizeof(float));
  }
  float* mtp_logits = content_.tensors["mtp_logits"].data<float>();
  for (int64_t position : {3, 4}) mtp_logits[position * config_.vocab_size] = 1e6f;
  const ParityReport report = check();
  EXPECT_EQ(failures(report), std::vector<std::string>());
  EXPECT_EQ(report.mtp_compared, 6);
  EXPECT_EQ(report.mtp_positions, 8);

  mtp_logits[5 * config_.vocab_size] += 1;
  EXPECT_EQ(failures(check()), std::vector<std::string>{"mtp_logits"});
  content_.tensors.erase("cu_seqlens");
  EXPECT_GT(failures(check()).size(), 3) << "one document of nine tokens is something else";
}

// Logits and gradients larger than the block that is in memory at a time.
TEST_F(ParityTest, ReadsTheReferenceInBlocks) {
  const int64_t V = config_.vocab_size = 140000;
  make_model(false);
  Oracle oracle(path("model"), config_, false, random_tokens(kB * kT, V, 3), kB);
  oracle.run();
  oracle.write_logits(content_);
  oracle.write_gradients(content_, ExpertLayout::kPerExpert);
  EXPECT_EQ(failures(check()), std::vector<std::string>());

  Tensor &logits = content_.tensors["logits"], &gradient = content_.tensors["grad.lm_head.weight"];
  logits.data<float>()[logits.numel() - 1] += 1000;
  gradient.data<float>()[gradient.numel() - 1] += 1000;
  const ParityReport report = check();
  EXPECT_EQ(failures(report), (std::vector<std::string>{"logits", "grad.lm_head.weight"}));
  EXPECT_EQ(report.tensors[0].worst_index, (std::vector<int64_t>{kB - 1, kT - 1, V - 1}));
  EXPECT_EQ(report.tensors.back().worst_index, (std::vector<int64_t>{V - 1, config_.hidden_size - 1}));
}

TEST_F(ParityTest, RefusesAnMtpReferenceOfAModelWithoutTheBlock) {
  make_reference();
  make_model(false);
  expect_contains(message_of<DataError>([&] { check(); }), "is about an MTP block, but " + path("model") + " has none");
}

TEST_F(ParityTest, RefusesReferencesThatAreNotFinite) {
  make_reference();
  content_.tensors["grad.lm_head.weight"].data<float>()[11] = std::nanf("");
  expect_contains(message_of<DataError>([&] { check(); }), "grad.lm_head.weight: element 11 is not finite");
}

// AdamW as it is defined, one parameter after the other, in double: decay for tensors of more than one dimension,
// gradients clipped by their norm over all parameters.
class TrainingTest : public ParityTest {
 protected:
  static constexpr int64_t kSteps = 6;
  static constexpr double kLr = 3e-3, kBeta1 = 0.8, kBeta2 = 0.9, kEps = 1e-6, kDecay = 0.5, kMaxNorm = 2;
  std::vector<double> losses_, grad_norms_;

  void make_reference() {
    make_model(true);
    content_.metadata = {{"lr", "0.003"},     {"beta1", "0.8"},        {"beta2", "0.9"},
                         {"eps", "0.000001"}, {"weight_decay", "0.5"}, {"max_grad_norm", "2"}};
    const auto tokens = random_tokens(kSteps * kB * kT, config_.vocab_size, 7);
    Oracle oracle(path("model"), config_, false, {tokens.begin(), tokens.begin() + kB * kT}, kB);
    TinyModel& t = oracle.tiny;
    std::vector<std::vector<double>> m(t.weights.size()), v(t.weights.size());
    for (int64_t step = 1; step <= kSteps; ++step) {
      const auto first = tokens.begin() + (step - 1) * kB * kT;
      oracle.batch = Oracle::make_batch({first, first + kB * kT}, kB, {});
      losses_.push_back(oracle.run());
      double squares = 0;
      for (const Tensor& g : t.gradients) squares += dot(g, g);
      const double norm = std::sqrt(squares);
      grad_norms_.push_back(norm);
      for (size_t group = 0; group < t.weights.size(); ++group) {
        double* w = t.weights[group].data<double>();
        const double* g = t.gradients[group].data<double>();
        m[group].resize(t.weights[group].numel());
        v[group].resize(t.weights[group].numel());
        for (const FlatParameter& p : t.layout.groups()[group].parameters)
          for (int64_t i = p.offset; i < p.offset + p.local_numel; ++i) {
            const double clipped = g[i] * std::min(1.0, kMaxNorm / (norm + 1e-6));
            double& first_moment = m[group][i] = kBeta1 * m[group][i] + (1 - kBeta1) * clipped;
            double& second_moment = v[group][i] = kBeta2 * v[group][i] + (1 - kBeta2) * clipped * clipped;
            if (p.parameter.shape.rank() > 1) w[i] -= kLr * kDecay * w[i];
            const double root = std::sqrt(second_moment / (1 - std::pow(kBeta2, step)));
            w[i] -= kLr * first_moment / (1 - std::pow(kBeta1, step)) / (root + kEps);
          }
      }
    }
    content_.tensors["batches"] = tensor_of(tokens, {kSteps, kB, kT});
    content_.tensors["losses"] = tensor_of(losses_, {kSteps});
    content_.tensors["grad_norms"] = tensor_of(grad_norms_, {kSteps});
  }
  ParityReport train(Precision precision) {
    content_.write(path("reference.safetensors"));
    Context ctx = Context::cpu();
    return check_training(ctx, options(precision));
  }
};

TEST_F(TrainingTest, FollowsAdamW) {
  make_reference();
  for (Precision precision : {Precision::kFp32, Precision::kFp64}) {
    const ParityReport report = train(precision);
    EXPECT_EQ(failures(report), std::vector<std::string>());
    ASSERT_EQ(report.curves.size(), 2);
    EXPECT_EQ(report.curves[0].got.size(), kSteps);
    const double rounding = precision == Precision::kFp64 ? 1e-9 : 1e-4;
    for (const CurveVerdict& c : report.curves) EXPECT_LT(c.largest_difference, rounding) << c.name;
  }
}

TEST_F(TrainingTest, FindsTheStepThatDiffers) {
  make_reference();
  content_.tensors["grad_norms"].data<double>()[4] *= 1.001;
  const ParityReport report = train(Precision::kFp32);
  EXPECT_EQ(failures(report), std::vector<std::string>{"grad_norms"});
  EXPECT_EQ(report.curves[1].worst, 4);
}

// Every setting of the metadata reaches the optimizer.
TEST_F(TrainingTest, DependsOnEverySetting) {
  make_reference();
  const auto settings = content_.metadata;
  for (const auto& [key, value] : settings) {
    content_.metadata = settings;
    content_.metadata[key] = key == "eps" ? "0.01" : "0.7";
    EXPECT_FALSE(train(Precision::kFp64).passed()) << key;
  }
}

}  // namespace
}  // namespace braid
