#include "tests/parallel/mpi_testing.h"

#include <cstdio>
#include <memory>

#include "parallel/mpi_session.h"

namespace braid::testing {
namespace {

Communicator* test_world = nullptr;

// Prints nothing but failures, with the rank in front, so that one rank's report stays readable.
class FailurePrinter : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", world().rank(), result.file_name() ? result.file_name() : "unknown",
                 result.line_number(), result.message());
  }
};

// After a fatal failure this rank is no longer in step with the others, who would wait for it until the time limit.
class JobEnder : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.fatally_failed()) MpiSession::abort(1);
  }
};

}  // namespace

Communicator& world() { return *test_world; }

std::vector<int32_t> members(Context& ctx, Communicator& group) {
  Tensor own = tensor_of<int32_t>({world().rank()}, {1}), all = poisoned({group.size()}, DType::kI32);
  group.all_gather(ctx, all, own);
  return {all.data<int32_t>(), all.data<int32_t>() + group.size()};
}

}  // namespace braid::testing

int main(int argc, char** argv) {
  using namespace braid;
  ::testing::InitGoogleTest(&argc, argv);
  std::unique_ptr<MpiSession> session;
  if (MpiSession::launched_by_mpi()) session = std::make_unique<MpiSession>(argc, argv);
  const std::unique_ptr<Communicator> world = session ? session->world() : make_local_communicator();
  braid::testing::test_world = world.get();

  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  if (world->rank() > 0) {
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new braid::testing::FailurePrinter);
  }
  if (world->size() > 1) listeners.Append(new braid::testing::JobEnder);
  return RUN_ALL_TESTS();
}
