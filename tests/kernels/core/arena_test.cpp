#include "kernels/core/arena.h"

#include "kernels/core/memory.h"
#include "tests/testing.h"

// A sanitizer must let an absurd request fail as the system does.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace braid {
namespace {

TEST(Planner, GivesShapesBeforeMemory) {
  Planner plan;
  Tensor weight, ids;
  plan.add("weight", weight, {3, 5}, DType::kF32);
  plan.add("ids", ids, {4}, DType::kI64);
  EXPECT_EQ(weight.shape(), (Shape{3, 5}));
  EXPECT_EQ(weight.dtype(), DType::kF32);
  EXPECT_TRUE(weight.defined());
  EXPECT_EQ(weight.raw(), nullptr);
  EXPECT_EQ(plan.entries()[0].bytes, 60);
  EXPECT_EQ(plan.entries()[1].offset_bytes, kMemoryAlignBytes);
  EXPECT_EQ(plan.total_bytes(), 2 * kMemoryAlignBytes);
}

TEST(Planner, PrefixesNamesWithItsScopes) {
  Planner plan;
  Tensor a, b, c;
  {
    Planner::Scope layer(plan, "layers.3.");
    {
      Planner::Scope mixer(plan, "mixer.");
      plan.add("q", a, {1}, DType::kF32);
    }
    plan.add("norm", b, {1}, DType::kF32);
  }
  plan.add("head", c, {1}, DType::kF32);
  EXPECT_EQ(plan.entries()[0].name, "layers.3.mixer.q");
  EXPECT_EQ(plan.entries()[1].name, "layers.3.norm");
  EXPECT_EQ(plan.entries()[2].name, "head");
}

// One turn's tensors lie side by side, over those of the other turns and over nothing else.
TEST(Arena, LetsTurnsShareMemoryBehindWhatIsKept) {
  Planner plan;
  Tensor kept, a, b, c, later;
  plan.add("kept", kept, {256}, DType::kU8);
  plan.begin_shared();
  plan.add_shared("a", a, {100}, DType::kU8);
  plan.add_shared("b", b, {300}, DType::kU8);
  plan.begin_shared();
  plan.add_shared("c", c, {600}, DType::kU8);
  plan.add("later", later, {256}, DType::kU8);
  EXPECT_EQ(plan.shared_bytes(), 3 * kMemoryAlignBytes);
  EXPECT_EQ(plan.total_bytes(), 5 * kMemoryAlignBytes);
  Arena arena("turns", plan);
  const auto* begin = static_cast<std::byte*>(kept.raw());
  EXPECT_EQ(later.raw(), begin + kMemoryAlignBytes);
  EXPECT_EQ(a.raw(), begin + 2 * kMemoryAlignBytes);
  EXPECT_EQ(b.raw(), begin + 3 * kMemoryAlignBytes);
  EXPECT_EQ(c.raw(), a.raw());
}

// What two computations share, each with itself, does not overlap.
TEST(Arena, KeepsApartWhatComputationsSideBySideShare) {
  Planner plan;
  Tensor kept[2], a[2], b[2];
  for (int i = 0; i < 2; ++i) {
    if (i > 0) plan.begin_other_shared();
    plan.add("kept", kept[i], {256}, DType::kU8);
    plan.begin_shared();
    plan.add_shared("a", a[i], {600}, DType::kU8);
    plan.begin_shared();
    plan.add_shared("b", b[i], {300}, DType::kU8);
  }
  EXPECT_EQ(plan.total_bytes(), 8 * kMemoryAlignBytes);
  Arena arena("side by side", plan);
  const auto* begin = static_cast<std::byte*>(kept[0].raw());
  EXPECT_EQ(a[0].raw(), begin + kMemoryAlignBytes);
  EXPECT_EQ(b[0].raw(), a[0].raw());
  EXPECT_EQ(kept[1].raw(), begin + 4 * kMemoryAlignBytes);
  EXPECT_EQ(a[1].raw(), begin + 5 * kMemoryAlignBytes);
  EXPECT_EQ(b[1].raw(), a[1].raw());
}

TEST(Arena, BacksEveryTensorWithItsOwnAlignedZeroedMemory) {
  Planner plan;
  std::vector<Tensor> tensors(20);
  for (int64_t i = 0; i < 20; ++i) plan.add("t", tensors[i], {i, 3}, i % 2 ? DType::kF32 : DType::kU8);
  // Memory that was used before is not zero by chance.
  { std::vector<char> used(plan.total_bytes() + 1024, 1); }
  Arena arena("activations", plan);
  EXPECT_EQ(arena.bytes(), plan.total_bytes());
  for (int64_t i = 0; i < 20; ++i) {
    ASSERT_EQ(tensors[i].shape(), (Shape{i, 3}));
    ASSERT_EQ(reinterpret_cast<uintptr_t>(tensors[i].raw()) % kMemoryAlignBytes, 0u);
    for (int64_t byte = 0; byte < tensors[i].bytes(); ++byte)
      ASSERT_EQ(static_cast<uint8_t*>(tensors[i].raw())[byte], 0);
    std::memset(tensors[i].raw(), static_cast<int>(i + 1), tensors[i].bytes());
  }
  for (int64_t i = 0; i < 20; ++i)
    for (int64_t byte = 0; byte < tensors[i].bytes(); ++byte)
      ASSERT_EQ(static_cast<uint8_t*>(tensors[i].raw())[byte], i + 1);
}

TEST(Arena, KeepsItsMemoryWhenMoved) {
  Planner plan;
  Tensor t;
  plan.add("t", t, {4}, DType::kF64);
  Arena arena;
  arena = Arena("weights", plan);
  t.data<double>()[3] = 1;
  EXPECT_EQ(arena.bytes(), kMemoryAlignBytes);
}

TEST(Arena, OfAnEmptyPlanTakesNothing) {
  Planner plan;
  Tensor t;
  plan.add("t", t, {0, 8}, DType::kF32);
  Arena arena("weights", plan);
  EXPECT_EQ(arena.bytes(), 0);
  EXPECT_EQ(t.shape(), (Shape{0, 8}));
}

TEST(Arena, NamesTheLargestEntriesWhenMemoryRunsOut) {
  Planner plan;
  Tensor a, b, c, d;
  plan.add("small", a, {16}, DType::kF32);
  plan.add("huge", b, {int64_t{1} << 57}, DType::kF64);
  plan.add("medium", c, {1000}, DType::kF32);
  plan.add("large", d, {int64_t{1} << 40}, DType::kU8);
  try {
    Arena arena("activations", plan);
    FAIL();
  } catch (const OutOfMemoryError& e) {
    EXPECT_STREQ(e.what(),
                 "cannot allocate 1152922604118479104 bytes for activations; the largest: huge 1152921504606846976, "
                 "large 1099511627776, medium 4000");
    EXPECT_EQ(e.code(), ExitCode::kOutOfMemory);
  }
  EXPECT_EQ(b.raw(), nullptr);
}

}  // namespace
}  // namespace braid
