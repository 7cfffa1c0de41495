#include "trainer/optimizer/sharded_parameters.h"

#include <cmath>
#include <map>

#include "tests/model/tiny_config.h"
#include "tests/parallel/mpi_testing.h"

namespace braid {
namespace {

using namespace braid::testing;

// Element i of a whole gradient.
double element(const std::string& name, int64_t i) { return double((name.size() * 7 + size_t(i) * 13) % 11) - 4; }

// Every rank that holds a copy of an element computed an equal part of its gradient.
TEST(ShardedParameters, NormsByNameAreThoseOfWholeGradients) {
  Context ctx = Context::cpu();
  const ModelConfig c = tiny_model_config();  // 6 experts
  MtpConfig mtp;
  mtp.depth = 1;
  for (const int64_t expert : {1, 2}) {
    if (world().size() % expert != 0) continue;
    const ProcessMesh mesh(world().split(0), expert, c.num_experts);
    ShardedParameters parameters(ParameterLayout(c, mtp, mesh), mesh, DType::kF64);
    Planner plan;
    parameters.plan(plan, plan, plan);
    Arena arena("parameters", plan);
    ModelParams weights(c, mtp), gradients(c, mtp);
    parameters.bind(weights, gradients);
    parameters.zero_gradients(ctx);
    const std::map<std::string, std::string> listed = {
        {"model.layers.0.mlp.experts.down_proj", "mlp.experts.down_proj"},
        {"model.layers.1.mlp.experts.down_proj", "mlp.experts.down_proj"},
        {"model.layers.0.linear_attn.A_log", "linear_attn.A_log"},
        {"model.embed_tokens.weight", "embed_tokens"},
        {"mtp.layers.0.self_attn.q_norm.weight", "mtp.self_attn.q_norm"},
        {"lm_head.weight", "lm_head"}};
    double total = 0;
    std::map<std::string, double> squares;
    gradients.visit(c, [&](const std::string& name, Tensor& t, const Shape& shape, Owner owner, auto...) {
      const bool shared = owner == Owner::kExpertRank;
      const int64_t first = shared ? mesh.expert().rank() * t.numel() : 0;
      const int copies = shared ? mesh.expert_data().size() : mesh.size();
      for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = element(name, first + i) / copies;
      double sum = 0;
      for (int64_t i = 0; i < shape.numel(); ++i) sum += element(name, i) * element(name, i);
      total += sum;
      if (const auto found = listed.find(name); found != listed.end()) squares[found->second] += sum;
    });
    parameters.reduce_gradients(ctx);
    ASSERT_EQ(squares.size(), 5u);
    double sum = 0;
    for (const NamedNumber& norm : parameters.norms_by_name(ctx)) {
      sum += norm.value * norm.value;
      if (const auto found = squares.find(norm.name); found != squares.end()) {
        EXPECT_NEAR(norm.value, std::sqrt(found->second), 1e-12 * norm.value) << norm.name;
        squares.erase(found);
      }
    }
    EXPECT_TRUE(squares.empty()) << squares.begin()->first;
    EXPECT_NEAR(sum, total, 1e-12 * total) << "every element once";
    EXPECT_NEAR(parameters.global_norm(ctx), std::sqrt(total), 1e-12 * total);
  }
}

}  // namespace
}  // namespace braid
