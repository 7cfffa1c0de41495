#include "kernels/core/context.h"

#include "tests/messages.h"
#include "tests/testing.h"

// A sanitizer must let an absurd request fail as the system does.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }

namespace braid {
namespace {

using namespace braid::testing;

constexpr int64_t kMiB = int64_t{1} << 20;

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 64 == 0; }

TEST(Scratch, HandsOutAlignedTensorsThatDoNotOverlap) {
  Context ctx = Context::cpu();
  Scratch scratch(ctx);
  Tensor a = scratch.tensor({3, 5}, DType::kF32);
  double* b = scratch.array<double>(7);
  uint8_t* c = scratch.array<uint8_t>(1);
  EXPECT_EQ(a.shape(), (Shape{3, 5}));
  EXPECT_EQ(a.dtype(), DType::kF32);
  EXPECT_TRUE(aligned(a.raw()) && aligned(b) && aligned(c));
  std::memset(a.raw(), 1, a.bytes());
  std::memset(b, 2, 7 * sizeof(double));
  *c = 3;
  for (int64_t i = 0; i < a.bytes(); ++i) ASSERT_EQ(static_cast<uint8_t*>(a.raw())[i], 1);
  EXPECT_EQ(reinterpret_cast<uint8_t*>(b)[7 * sizeof(double) - 1], 2);
}

TEST(Scratch, ReleasesWhatAnInnerScopeTook) {
  Context ctx = Context::cpu();
  Scratch outer(ctx);
  outer.array<float>(10);
  float* inner_first;
  {
    Scratch inner(ctx);
    inner_first = inner.array<float>(100);
    inner.array<float>(1000);
  }
  {
    Scratch inner(ctx);
    EXPECT_EQ(inner.array<float>(100), inner_first);
  }
  EXPECT_EQ(outer.array<float>(1), inner_first);
}

TEST(Scratch, KeepsPointersWhileItGrows) {
  Context ctx = Context::cpu();
  Scratch scratch(ctx);
  std::vector<Tensor> taken;
  for (int64_t i = 0; i < 13; ++i) {  // 1 kB to 4 MiB: several blocks
    taken.push_back(scratch.tensor({int64_t{1024} << i}, DType::kU8));
    std::memset(taken.back().raw(), static_cast<int>(i), taken.back().bytes());
    Scratch passing(ctx);  // a scope that needs ever larger blocks must not take those of the outer one
    const int64_t passing_bytes = (i % 3 + 1) * kMiB;
    std::memset(passing.array<uint8_t>(passing_bytes), 0xff, passing_bytes);
  }
  for (size_t i = 0; i < taken.size(); ++i)
    for (int64_t j = 0; j < taken[i].numel(); ++j) ASSERT_EQ(taken[i].data<uint8_t>()[j], i);
}

TEST(Scratch, TakesTheSameMemoryInEveryRepetition) {
  Context ctx = Context::cpu();
  auto step = [&] {
    std::vector<void*> pointers;
    Scratch outer(ctx);
    pointers.push_back(outer.array<uint8_t>(kMiB / 2));
    for (int64_t mib : {1, 3, 2, 5}) {
      Scratch inner(ctx);
      pointers.push_back(inner.array<uint8_t>(mib * kMiB));
      pointers.push_back(inner.array<uint8_t>(100));
    }
    return pointers;
  };
  step();
  step();
  const auto settled = step();
  EXPECT_EQ(step(), settled);
}

TEST(Scratch, CountsThePeak) {
  Context ctx = Context::cpu();
  EXPECT_EQ(ctx.scratch_peak_bytes(), 0);
  Scratch outer(ctx);
  outer.array<uint8_t>(512);
  for (int repetition = 0; repetition < 3; ++repetition) {
    Scratch inner(ctx);
    inner.array<uint8_t>(1 * kMiB);
    inner.array<uint8_t>(2 * kMiB);
  }
  outer.array<uint8_t>(256);
  EXPECT_EQ(ctx.scratch_peak_bytes(), 512 + 3 * kMiB);
}

TEST(Scratch, OfTheSecondIsItsOwnAndCounted) {
  for (const bool counts : {false, true}) {
    Context ctx = counts ? Context::cpu().counter() : Context::cpu();
    Scratch first(ctx);
    uint8_t* a = first.array<uint8_t>(512);
    Scratch second(ctx.second());
    uint8_t* b = second.array<uint8_t>(256);
    EXPECT_EQ(&ctx.second(), &ctx.second());
    EXPECT_EQ(ctx.second().counts_only(), counts);
    EXPECT_TRUE(counts || a != b);
    EXPECT_EQ(ctx.own_scratch_peak_bytes(), 512);
    EXPECT_EQ(ctx.scratch_peak_bytes(), 512 + 256);
  }
}

TEST(Scratch, TakesWhatWasReserved) {
  Context ctx = Context::cpu();
  { Scratch(ctx).array<uint8_t>(kMiB); }
  ctx.reserve_scratch(8 * kMiB);
  uint8_t* begin = nullptr;
  for (int64_t mib : {1, 3, 2, 7}) {  // would else take ever larger blocks
    Scratch scratch(ctx);
    uint8_t* first = scratch.array<uint8_t>(kMiB / 2);
    if (begin == nullptr) begin = first;
    EXPECT_EQ(first, begin);
    EXPECT_EQ(scratch.array<uint8_t>(mib * kMiB), begin + kMiB / 2);
    EXPECT_EQ(scratch.array<uint8_t>(kMiB / 4), begin + kMiB / 2 + mib * kMiB);
  }
  ctx.reserve_scratch(kMiB);  // there is more
  EXPECT_EQ(Scratch(ctx).array<uint8_t>(8 * kMiB), begin);
  EXPECT_THROW(ctx.reserve_scratch(int64_t{1} << 60), OutOfMemoryError);
  EXPECT_NE(Scratch(ctx).array<uint8_t>(64), nullptr);  // still usable
}

TEST(Scratch, ReportsMemoryThatCannotBeHad) {
  Context ctx = Context::cpu();
  Scratch scratch(ctx);
  EXPECT_EQ(message_of<OutOfMemoryError>([&] { scratch.array<uint8_t>(int64_t{1} << 60); }),
            "cannot allocate 1152921504606846976 bytes of scratch");
  EXPECT_NE(scratch.array<uint8_t>(64), nullptr);  // still usable
}

}  // namespace
}  // namespace braid
