#include "parallel/mpi_communicator.h"

#include <algorithm>

#include "parallel/mpi_check.h"
#include "tests/parallel/mpi_testing.h"

// The calls below stand in front of the MPI library's own (its profiling interface, PMPI_*), so a test sees how many
// bytes each call moves and can let any of them fail.
namespace {

int num_calls = 0, failing_call = 0, largest_count = 0;

template <class Call>
int observed(int count, Call call) {
  largest_count = std::max(largest_count, count);
  return ++num_calls == failing_call ? MPI_ERR_OTHER : call();
}

}  // namespace

extern "C" {
int MPI_Sendrecv(const void* send, int send_count, MPI_Datatype send_type, int to, int send_tag, void* recv,
                 int recv_count, MPI_Datatype recv_type, int from, int recv_tag, MPI_Comm comm, MPI_Status* status) {
  return observed(std::max(send_count, recv_count), [=] {
    return PMPI_Sendrecv(send, send_count, send_type, to, send_tag, recv, recv_count, recv_type, from, recv_tag, comm,
                         status);
  });
}
int MPI_Allgather(const void* send, int send_count, MPI_Datatype send_type, void* recv, int recv_count,
                  MPI_Datatype recv_type, MPI_Comm comm) {
  return observed(recv_count,
                  [=] { return PMPI_Allgather(send, send_count, send_type, recv, recv_count, recv_type, comm); });
}
int MPI_Bcast(void* data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
  return observed(count, [=] { return PMPI_Bcast(data, count, type, root, comm); });
}
int MPI_Barrier(MPI_Comm comm) {
  return observed(0, [=] { return PMPI_Barrier(comm); });
}
int MPI_Comm_split(MPI_Comm comm, int color, int key, MPI_Comm* group) {
  return observed(0, [=] { return PMPI_Comm_split(comm, color, key, group); });
}
int MPI_Comm_dup(MPI_Comm comm, MPI_Comm* copy) {
  return observed(0, [=] { return PMPI_Comm_dup(comm, copy); });
}
}

namespace braid {
namespace {

using namespace braid::testing;

// One call of every kind, with what it left in memory.
struct Operation {
  const char* name;
  std::function<Tensor(Context&, Communicator&)> run;
};

std::vector<Operation> operations(int64_t count) {
  const int64_t W = world().size();
  const Tensor mine = random_normal({W * count}, DType::kF32, 1 + world().rank());
  return {{"all_reduce",
           [=](Context& ctx, Communicator& c) {
             Tensor x = copy_of(mine);
             c.all_reduce(ctx, x, ReduceOp::kSum);
             return x;
           }},
          {"reduce_scatter",
           [=](Context& ctx, Communicator& c) {
             Tensor shard = poisoned({count}, DType::kF32);
             c.reduce_scatter(ctx, shard, mine, ReduceOp::kSum);
             return shard;
           }},
          {"all_gather",
           [=](Context& ctx, Communicator& c) {
             Tensor full = poisoned({W * W * count}, DType::kF32);
             c.all_gather(ctx, full, mine);
             return full;
           }},
          {"all_to_all_rows",
           [=](Context& ctx, Communicator& c) {
             // Rank r sends and receives more rows the higher r is: some transfers need more pieces than their partner.
             std::vector<int64_t> send_rows, recv_rows;
             int64_t num_sent = 0, num_received = 0;
             for (int r = 0; r < W; ++r) {
               send_rows.push_back(count * r / W);
               recv_rows.push_back(count * c.rank() / W);
               num_sent += send_rows.back();
               num_received += recv_rows.back();
             }
             Tensor recv = poisoned({num_received}, DType::kF32);
             c.all_to_all_rows(ctx, recv, recv_rows, mine.rows(0, num_sent), send_rows);
             return recv;
           }},
          {"broadcast",
           [=](Context& ctx, Communicator& c) {
             Tensor x = copy_of(mine);
             c.broadcast(ctx, x, world().size() - 1);
             return x;
           }},
          {"barrier",
           [](Context& ctx, Communicator& c) {
             c.barrier(ctx);
             return zeros_f64({1});
           }},
          {"split", [](Context&, Communicator& c) {
             const auto group = c.split(0);
             return tensor_of<int32_t>({group->rank(), group->size()}, {2});
           }}};
}

TEST(MpiCommunicator, PiecesGiveTheSameBits) {
  Context ctx = Context::cpu();
  const auto in_pieces = make_mpi_communicator(1000);
  for (int64_t count : {0, 1, 100, 5003}) {
    for (const auto& [name, run] : operations(count)) {
      const Tensor expected = run(ctx, world());
      largest_count = 0;
      expect_same_bits(run(ctx, *in_pieces), expected, name);
      EXPECT_LE(largest_count, 1000) << name;
    }
  }
}

TEST(MpiCommunicator, GroupsInheritThePieces) {
  Context ctx = Context::cpu();
  const auto group = make_mpi_communicator(1000)->split(0);
  Tensor x = random_f64({5003}, 1), expected = copy_of(x);
  largest_count = 0;
  group->broadcast(ctx, x, 0);
  expect_same_bits(x, expected);
  EXPECT_EQ(largest_count, 1000);
}

TEST(MpiCommunicator, EveryFailedCallIsReportedWithTheOperation) {
  Context ctx = Context::cpu();
  for (int64_t count : {10, 140009}) {  // one call and several
    for (const Operation& operation : operations(count)) {
      const auto& [name, run] = operation;
      const Tensor expected = run(ctx, world());
      num_calls = 0;
      run(ctx, world());
      const int calls = num_calls;
      EXPECT_GE(calls, 1) << name;
      for (int call = 1; call <= calls; ++call) {
        num_calls = 0;
        failing_call = call;  // on every rank, so none waits for another
        const std::string message = message_of<CommunicationError>([&] { operation.run(ctx, world()); });
        failing_call = 0;
        EXPECT_EQ(message.rfind(name, 0), 0u) << message;
        EXPECT_NE(message.find("MPI_ERR_OTHER"), std::string::npos) << message;
      }
      expect_same_bits(run(ctx, world()), expected, "after the failures");
    }
  }
}

TEST(MpiCommunicator, AFailedCopyOfTheWorldIsReported) {
  num_calls = 0;
  failing_call = 1;
  const std::string message = message_of<CommunicationError>([] { make_mpi_communicator(); });
  failing_call = 0;
  EXPECT_NE(message.find("MPI_COMM_WORLD: MPI_ERR_OTHER"), std::string::npos) << message;
}

// Rank 1 hears from this rank last, so that its error keeps no third rank waiting.
TEST(MpiCommunicator, NamesTheRanksWhoseCountsDisagree) {
  Context ctx = Context::cpu();
  const int W = world().size(), rank = world().rank(), sender = 2 % W;
  for (int64_t expected : {2, 4}) {
    const auto group = make_mpi_communicator();
    std::vector<int64_t> send_rows(W, 1), recv_rows(W, 1);
    if (rank == sender) send_rows[1] = 3;
    if (rank == 1) recv_rows[sender] = expected;
    const Tensor send = zeros_f64({W + (rank == sender ? 2 : 0)});
    const Tensor recv = zeros_f64({W + (rank == 1 ? expected - 1 : 0)});
    auto exchange = [&] { group->all_to_all_rows(ctx, recv, recv_rows, send, send_rows); };
    if (rank != 1) {
      EXPECT_NO_THROW(exchange());
    } else if (expected == 4) {
      EXPECT_EQ(message_of<CommunicationError>(exchange),
                concat("all_to_all_rows: rank 1 expected 32 bytes from rank ", sender, ", but got 24"));
    } else {
      const std::string message = message_of<CommunicationError>(exchange);
      EXPECT_NE(
          message.find(concat("all_to_all_rows, rank 1 sending 8 bytes to rank 0 and expecting 16 bytes from rank ",
                              sender, ": MPI_ERR_TRUNCATE")),
          std::string::npos)
          << message;
    }
  }
}

}  // namespace
}  // namespace braid
