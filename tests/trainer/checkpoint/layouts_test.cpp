// A state that goes through checkpoints from every layout of ranks to every other.
#include <unistd.h>

#include <bit>
#include <filesystem>
#include <functional>

#include "kernels/core/split_float.h"
#include "kernels/core/temporary_folder.h"
#include "parallel/rank_text.h"
#include "tests/model/tiny_config.h"
#include "tests/parallel/mpi_testing.h"
#include "trainer/checkpoint/device_slices.h"
#include "trainer/training_state.h"

namespace braid {
namespace {

namespace fs = std::filesystem;
using namespace braid::testing;

struct Layout {
  int ranks, expert;
};

class LayoutsTest : public ::testing::TestWithParam<OptimizerKind> {
 protected:
  Context ctx_ = Context::cpu();
  TemporaryFolder temporary_;
  std::string folder_ = broadcast_text(ctx_, world(), temporary_.path());  // rank 0's

  void TearDown() override { world().barrier(ctx_); }

  RunConfig config(int64_t expert, int64_t width = 1) const {
    RunConfig c;
    c.model = tiny_model_config();
    c.model.num_experts = 8;
    c.model.hidden_size *= width;
    c.model.moe_intermediate_size *= width;
    c.model.vocab_size *= width;
    c.mtp.depth = 1;
    c.train.seq_length = 8;
    c.optimizer.kind = GetParam();
    c.parallel.expert = expert;
    c.parallel.bucket_elements = 4000;
    return c;
  }

  // body(mesh, state) on the first `layout.ranks` ranks; the others wait.
  void run(Layout layout, const RunConfig& c, const std::function<void(const ProcessMesh&, TrainingState&)>& body) {
    const bool takes_part = world().rank() < layout.ranks;
    auto group = world().split(takes_part ? 0 : 1);
    if (takes_part) {
      const ProcessMesh mesh(std::move(group), layout.expert, c.model.num_experts);
      TrainingState state(c, mesh);
      state.allocate(ctx_);
      body(mesh, state);
    }
    world().barrier(ctx_);
  }

  // Element i of a tensor, whoever holds it.
  static double element(const std::string& name, int64_t i) {
    return static_cast<double>((std::hash<std::string>()(name) + static_cast<uint64_t>(i) * 40503) % 8191);
  }
  static void set(Tensor t, int64_t i, double value) {
    if (t.dtype() == DType::kF32) t.data<float>()[i] = static_cast<float>(value);
    else t.data<int64_t>()[i] = static_cast<int64_t>(value);
  }
  static double get(const Tensor& t, int64_t i) {
    return t.dtype() == DType::kF32 ? t.data<float>()[i] : static_cast<double>(t.data<int64_t>()[i]);
  }

  void fill(TrainingState& state) const {
    for (const CheckpointSlice& s : state.slices())
      for (int64_t i = 0; i < s.data.numel(); ++i) set(s.data, i, element(s.name, s.begin + i));
  }
  void expect_filled(const RunConfig& c, const ProcessMesh& mesh, TrainingState& state) const {
    int64_t wrong = 0;
    for (const CheckpointSlice& s : state.slices())
      for (int64_t i = 0; i < s.data.numel(); ++i) wrong += get(s.data, i) != element(s.name, s.begin + i);
    EXPECT_EQ(wrong, 0) << "of what the rank stores";
    state.model.weights().visit(c.model, [&](const std::string& name, Tensor& t, const Shape&, Owner owner, auto...) {
      const int64_t first = owner == Owner::kExpertRank ? mesh.expert().rank() * t.numel() : 0;
      for (int64_t i = 0; i < t.numel(); ++i) wrong += get(t, i) != element("weights/" + name, first + i);
    });
    EXPECT_EQ(wrong, 0) << "of the weights that it computes with";
  }
  std::string save(const ProcessMesh& mesh, TrainingState& state, const std::string& name,
                   CheckpointContents contents = CheckpointContents::kAll) {
    CheckpointInfo info;
    info.step = 1;
    info.num_ranks = mesh.size();
    info.expert_parallel = mesh.expert().size();
    return save_checkpoint(ctx_, mesh.world(), folder_ + "/" + name, info, state.slices(contents));
  }
  std::string saved_by(Layout layout, const RunConfig& c, const std::string& name) {
    run(layout, c, [&](const ProcessMesh& mesh, TrainingState& state) {
      fill(state);
      save(mesh, state, name);
    });
    return folder_ + "/" + name + "/step-000000001";
  }
};

constexpr Layout kLayouts[] = {{1, 1}, {2, 1}, {2, 2}, {4, 1}, {4, 2}, {4, 4}};

TEST_P(LayoutsTest, EachLoadsWhatEveryOtherWrote) {
  ASSERT_GE(world().size(), 4);
  for (const Layout& from : kLayouts) {
    const std::string name = concat(from.ranks, '-', from.expert);
    const std::string saved = saved_by(from, config(from.expert), name);
    for (const Layout& to : kLayouts) {
      SCOPED_TRACE(concat(name, " to ", to.ranks, '-', to.expert));
      const RunConfig c = config(to.expert);
      run(to, c, [&](const ProcessMesh& mesh, TrainingState& state) {
        state.load(ctx_, CheckpointReader(ctx_, mesh.world(), saved));
        expect_filled(c, mesh, state);
      });
    }
  }
}

// Beside bf16 weights masters exist in two halves; a checkpoint has them whole.
TEST_P(LayoutsTest, SplitMastersAreThoseThatWereWritten) {
  const std::string saved = saved_by({2, 2}, config(2), "whole");
  for (const Layout& to : kLayouts) {
    SCOPED_TRACE(concat(to.ranks, '-', to.expert));
    RunConfig c = config(to.expert);
    c.precision = Precision::kBf16;
    const std::string name = concat("split-", to.ranks, '-', to.expert);
    run(to, c, [&](const ProcessMesh& mesh, TrainingState& state) {
      state.load(ctx_, CheckpointReader(ctx_, mesh.world(), saved));
      int64_t wrong = 0;
      for (const CheckpointSlice& s : state.slices())
        visit_on_host(ctx_, {s}, [&](const Tensor& part) {
          ASSERT_EQ(part.numel(), s.data.numel());
          for (int64_t i = 0; i < part.numel(); ++i) wrong += get(part, i) != element(s.name, s.begin + i);
        });
      EXPECT_EQ(wrong, 0) << "of what the rank stores";
      save(mesh, state, name);
    });
    const RunConfig plain = config(2);
    run({2, 2}, plain, [&](const ProcessMesh& mesh, TrainingState& state) {
      state.load(ctx_, CheckpointReader(ctx_, mesh.world(), folder_ + "/" + name + "/step-000000001"));
      expect_filled(plain, mesh, state);
    });
  }
}

// Weights alone, as bf16 training computes with them: the same bits on every other layout, where masters begin at them.
TEST_P(LayoutsTest, WeightsAloneAreThoseThatAreComputedWith) {
  const std::string saved = saved_by({2, 2}, config(2), "all");
  RunConfig from = config(2);
  from.precision = Precision::kBf16;
  const std::string alone = folder_ + "/alone/step-000000001";
  run({2, 2}, from, [&](const ProcessMesh& mesh, TrainingState& state) {
    state.load(ctx_, CheckpointReader(ctx_, mesh.world(), saved));
    save(mesh, state, "alone", CheckpointContents::kWeights);
  });
  const CheckpointReader stored(alone);
  EXPECT_TRUE(stored.holds_weights_alone());
  EXPECT_FALSE(CheckpointReader(saved).holds_weights_alone());
  for (const Layout& to : kLayouts) {
    SCOPED_TRACE(concat(to.ranks, '-', to.expert));
    RunConfig c = config(to.expert);
    c.precision = Precision::kBf16;
    run(to, c, [&](const ProcessMesh& mesh, TrainingState& state) {
      state.load_weights(ctx_, CheckpointReader(ctx_, mesh.world(), alone));
      int64_t wrong = 0, bf16 = 0;
      state.model.weights().visit(c.model, [&](const std::string& name, Tensor& t, const Shape&, Owner owner, auto...) {
        const int64_t first = owner == Owner::kExpertRank ? mesh.expert().rank() * t.numel() : 0;
        for (int64_t i = 0; i < t.numel(); ++i) {
          const auto master = static_cast<float>(element("weights/" + name, first + i));
          const SplitFloat split = split_float(std::bit_cast<uint32_t>(master));
          bf16 += t.dtype() == DType::kBF16;
          wrong +=
              t.dtype() == DType::kBF16 ? static_cast<const uint16_t*>(t.raw())[i] != split.high : get(t, i) != master;
        }
      });
      for (const CheckpointSlice& s : state.parameters.slices())
        for (int64_t i = 0; i < 2 * s.split_low.numel(); i += 2) wrong += s.split_low.data<uint8_t>()[i / 2] != 0;
      EXPECT_EQ(wrong, 0);
      EXPECT_GT(bf16, 0);
    });
  }
}

TEST_P(LayoutsTest, AChainOfThemChangesNothing) {
  std::string saved = saved_by({2, 2}, config(2), "chain");
  int link = 0;
  for (const Layout& to : {Layout{4, 1}, {1, 1}, {4, 4}, {2, 1}, {4, 2}}) {
    const RunConfig c = config(to.expert);
    const std::string name = concat("chain-", link++);
    run(to, c, [&](const ProcessMesh& mesh, TrainingState& state) {
      state.load(ctx_, CheckpointReader(ctx_, mesh.world(), saved));
      expect_filled(c, mesh, state);
      save(mesh, state, name);
    });
    saved = folder_ + "/" + name + "/step-000000001";
  }
  if (world().rank() == 0) CheckpointReader(saved).verify();
}

// Every rank of a job together, whatever wrote the checkpoint; and what they write, they share evenly.
TEST_P(LayoutsTest, ALoadReadsTheCheckpointOnceAndASaveIsSpreadEvenly) {
  const RunConfig c = config(1, 8);
  for (const int writers : {2, world().size()}) {
    const std::string saved = saved_by({writers, 1}, c, concat("from-", writers));
    int64_t stored = 0, largest = 0;
    for (const auto& entry : fs::directory_iterator(saved)) {
      const int64_t bytes = static_cast<int64_t>(entry.file_size());
      stored += bytes;
      if (entry.path().extension() == ".safetensors") largest = std::max(largest, bytes);
    }
    // Whole matrices, as Muon has them, cannot be shared as evenly.
    // Whole matrices, as Muon has them, cannot be shared as evenly (ParameterLayoutTest).
    const double unevenness = double(largest) * writers / double(stored);
    EXPECT_TRUE(GetParam() == OptimizerKind::kMuon || unevenness < 1.03) << unevenness;
    for (int readers : {1, 2, 4, 8, 16}) {
      if (readers > world().size()) continue;
      run({readers, 1}, c, [&](const ProcessMesh& mesh, TrainingState& state) {
        const CheckpointReader reader(ctx_, mesh.world(), saved);
        state.load(ctx_, reader);
        expect_filled(c, mesh, state);
        int64_t needed = 0;
        for (const CheckpointSlice& slice : state.slices()) needed += slice.data.bytes();
        int64_t bytes[2] = {reader.bytes_read(), needed};
        mesh.world().all_reduce(ctx_, Tensor::of(bytes, {2}), ReduceOp::kSum);
        const double ratio = double(bytes[0]) / double(bytes[1]);
        EXPECT_LE(ratio, 1.05);
        if (mesh.rank() == 0)
          std::printf("%d wrote, %d read: %lld bytes read, %lld needed, %.4f\n", writers, readers,
                      static_cast<long long>(bytes[0]), static_cast<long long>(bytes[1]), ratio);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizers, LayoutsTest, ::testing::Values(OptimizerKind::kAdamW, OptimizerKind::kMuon),
                         [](const auto& info) { return info.param == OptimizerKind::kMuon ? "Muon" : "AdamW"; });

}  // namespace
}  // namespace braid
