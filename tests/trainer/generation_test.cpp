#include "trainer/generation.h"

#include <algorithm>

#include "kernels/matmul.h"
#include "tests/messages.h"
#include "tests/model/tiny_model.h"

namespace braid {
namespace {

using namespace braid::testing;

// Weights of a small model with both kinds of layers in `dtype`, and models of any length on them.
struct TextModels {
  explicit TextModels(DType dtype, int64_t max_positions = 256) : dtype(dtype) {
    config = tiny_model_config();
    config.layer_types = {LayerType::kLinearAttention, LayerType::kLinearAttention, LayerType::kFullAttention,
                          LayerType::kLinearAttention};
    config.num_hidden_layers = 4;
    config.max_position_embeddings = max_positions;
    const ParameterLayout layout(config, mtp, 1, 0, 1, 1);
    Planner plan;
    layout.plan_weights(plan, flat, dtype);
    memory.emplace_back("weights", plan);
    ModelParams& weights = of_length(1).weights();
    layout.bind(weights, flat);
    load_weights(ctx, InitialWeights(config, {}, 5), layout, flat);
  }
  Model& of_length(int64_t length) {
    auto& model = models[length];
    if (model) return *model;
    model = std::make_unique<Model>(config, mtp, RowsShape{1, length}, dtype, *world, 0);
    Planner plan;
    model->plan_activations(plan);
    memory.emplace_back("activations", plan);
    if (length > 1) model->weights() = models[1]->weights();
    return *model;
  }
  // Logits behind every token of the text, from one forward pass over all of it.
  Tensor all_logits(const std::vector<uint32_t>& text) {
    const auto length = static_cast<int64_t>(text.size());
    Batch batch{
        1, length, {text.begin(), text.end()}, std::vector<int64_t>(text.size(), -1), Segments::whole_rows(1, length)};
    batch.complete();
    of_length(length).forward(ctx, batch);
    Tensor logits = allocate({length, config.vocab_size}, dtype);
    linear_forward(ctx, logits, of_length(length).hidden(), of_length(1).weights().lm_head);
    return logits;
  }

  DType dtype;
  ModelConfig config;
  MtpConfig mtp{.depth = 0};
  std::unique_ptr<Communicator> world = make_local_communicator();
  std::map<int64_t, std::unique_ptr<Model>> models;
  std::vector<Tensor> flat;
  std::deque<Arena> memory;
  Context ctx = Context::cpu();
};

std::vector<uint32_t> random_text(int64_t length, int64_t vocab) {
  std::vector<uint32_t> text;
  for (int64_t i = 0; i < length; ++i) text.push_back(philox(3, 0, uint64_t(i))[0] % uint32_t(vocab));
  return text;
}

// Pieces of any length, also shorter than the convolution and longer than a chunk of the delta rule.
TEST(TextReader, GivesTheLogitsOfTheWholeText) {
  for (DType dtype : {DType::kF64, DType::kF32}) {
    TextModels models(dtype);
    const std::vector<uint32_t> text = random_text(170, models.config.vocab_size);
    const Tensor expected = models.all_logits(text);
    for (const std::vector<int64_t>& pieces : {std::vector<int64_t>(170, 1), {1, 2, 1, 70, 1, 1, 3, 2, 89}, {170}}) {
      TextReader reader(models.ctx, models.of_length(1), 170);
      int64_t end = 0;
      for (int64_t length : pieces) {
        const Tensor& logits = reader.read({text.data() + end, size_t(length)});
        end += length;
        const Tensor at_end = expected.rows(end - 1, end).view({models.config.vocab_size});
        expect_close(logits, at_end, dtype == DType::kF64 ? 1e-12 : 1e-4, concat("after ", end, " tokens").c_str());
      }
    }
  }
}

TEST(TextReader, KnowsWhenTheTextIsFull) {
  TextModels models(DType::kF64);
  TextReader reader(models.ctx, models.of_length(1), 3);
  const std::vector<uint32_t> text = {1, 2, 3, 4};
  EXPECT_THROW(reader.read(text), ShapeError);
  reader.read({text.data(), 3});
  EXPECT_THROW(reader.read({text.data(), 1}), ShapeError);
}

// Of every token that is added to a text: how many others a forward pass over everything so far finds more probable.
std::vector<int64_t> ranks_of_added(TextModels& models, const SamplingConfig& sampling) {
  std::vector<uint32_t> text = {3, 1, 4, 1, 5};
  std::vector<int64_t> ranks;
  for (uint32_t token : generate(models.ctx, models.of_length(1), text, sampling, -1)) {
    const Tensor logits = models.all_logits(text);
    const int64_t V = models.config.vocab_size, last = (std::ssize(text) - 1) * V;
    ranks.push_back(0);
    for (int64_t v = 0; v < V; ++v)
      ranks.back() += value_at(logits, last + v) > value_at(logits, last + int64_t{token});
    text.push_back(token);
  }
  return ranks;
}

TEST(Generate, GreedyTextIsThatOfTheFullForward) {
  for (DType dtype : {DType::kF64, DType::kF32}) {
    TextModels models(dtype);
    for (const SamplingConfig& sampling : {SamplingConfig{.num_tokens = 90, .temperature = 0},
                                           SamplingConfig{.num_tokens = 90, .temperature = 1, .top_k = 1},
                                           SamplingConfig{.num_tokens = 90, .temperature = 1e-9}})
      EXPECT_EQ(ranks_of_added(models, sampling), std::vector<int64_t>(90, 0)) << sampling.temperature;
  }
}

// So hot that all of them are as probable.
TEST(Generate, SamplesAmongTheKMostProbableTokens) {
  TextModels models(DType::kF64);
  const auto ranks = ranks_of_added(models, {.num_tokens = 120, .temperature = 1e9, .top_k = 3});
  ASSERT_EQ(ranks.size(), 120);
  for (int64_t rank : {0, 1, 2}) EXPECT_NEAR(std::count(ranks.begin(), ranks.end(), rank), 40, 20) << rank;
  EXPECT_EQ(*std::max_element(ranks.begin(), ranks.end()), 2);
}

// A vocabulary that was rounded up holds ids that no tokenizer can say.
TEST(Generate, ChoosesAmongTheIdsOfTheTokenizer) {
  TextModels models(DType::kF32);
  for (const double temperature : {0.0, 1e9}) {
    const auto text = generate(models.ctx, models.of_length(1), {1, 2},
                               {.num_tokens = 60, .temperature = temperature, .num_ids = 4}, -1);
    ASSERT_EQ(text.size(), 60u);
    EXPECT_LT(*std::max_element(text.begin(), text.end()), 4u);
  }
}

TEST(Generate, RefusesLogitsThatAreNoNumbers) {
  TextModels models(DType::kF32);
  models.of_length(1).weights().lm_head.data<float>()[0] = std::nanf("");
  EXPECT_NE(message_of<NumericsError>([&] {
              generate(models.ctx, models.of_length(1), {1, 2}, {.num_tokens = 3}, -1);
            }).find("the model's logit of token 0 is nan"),
            std::string::npos);
}

TEST(Generate, DependsOnTheSeedAloneAndStopsAtTheEndOfTheDocument) {
  TextModels models(DType::kF32);
  auto with_seed = [&](uint64_t seed, int64_t end) {
    return generate(models.ctx, models.of_length(1), {1, 2}, {.num_tokens = 40, .temperature = 1, .seed = seed}, end);
  };
  const auto text = with_seed(1, -1);
  EXPECT_EQ(text, with_seed(1, -1));
  EXPECT_NE(text, with_seed(2, -1));
  const int64_t end = text[20];
  const auto first = std::find(text.begin(), text.end(), end);
  EXPECT_EQ(with_seed(1, end), std::vector<uint32_t>(text.begin(), first));
}

TEST(Generate, RefusesWhatTheModelCannotRead) {
  TextModels models(DType::kF32, 16);
  auto message = [&](const std::vector<uint32_t>& prompt, int64_t num_tokens) {
    return message_of<ConfigError>(
        [&] { generate(models.ctx, models.of_length(1), prompt, {.num_tokens = num_tokens}, -1); });
  };
  EXPECT_EQ(message({1, 2, 3}, 13), "");
  EXPECT_EQ(message({1, 2, 3}, 14),
            "the prompt's 3 tokens and 14 new ones are more than the model's max_position_embeddings of 16");
  EXPECT_EQ(message({}, 3), "the prompt is empty");
  EXPECT_EQ(message({1, 11}, 3), "the prompt holds token 11, the model's vocabulary has 11");
}

}  // namespace
}  // namespace braid
