#include "parallel/communicator.h"

#include "trainer/bench/workbench.h"

namespace braid {
namespace {

// Sizes are those of the whole tensor; what is counted is what a rank must send at least, whatever the algorithm.
void bench_size(Workbench& b, int64_t mib) {
  Communicator& world = b.world();
  const int64_t ranks = world.size(), C = b.model().hidden_size;
  const double others = double(ranks - 1) / double(ranks);
  const std::string shape = concat(mib, " MiB, ", ranks, " ranks");
  {
    const int64_t row_bytes = C * size_of(b.activation());
    const int64_t rows_each = (mib << 20) / row_bytes / ranks, rows = rows_each * ranks;
    const std::vector<int64_t> counts(static_cast<size_t>(ranks), rows_each);
    const Tensor send = b.normal({rows, C}, b.activation());
    Tensor recv = b.empty({rows, C}, b.activation());
    b.measure(
        "all_to_all_rows", shape, {.link_bytes = double(send.bytes()) * others},
        [&](int) { world.all_to_all_rows(b.ctx(), recv, counts, send, counts); }, Launch::kDirect);
  }
  const int64_t part = (mib << 20) / int64_t{sizeof(float)} / ranks;
  Tensor full = b.normal({part * ranks}, DType::kF32), shard = b.normal({part}, DType::kF32);
  const double sent = double(full.bytes()) * others;
  b.measure(
      "all_reduce", shape, {.link_bytes = 2 * sent}, [&](int) { world.all_reduce(b.ctx(), full, ReduceOp::kSum); },
      Launch::kDirect);
  b.measure(
      "reduce_scatter", shape, {.link_bytes = sent},
      [&](int) { world.reduce_scatter(b.ctx(), shard, full, ReduceOp::kSum); }, Launch::kDirect);
  b.measure(
      "all_gather", shape, {.link_bytes = sent}, [&](int) { world.all_gather(b.ctx(), full, shard); }, Launch::kDirect);
}

}  // namespace

void bench_communicator(Workbench& b) {
  for (int64_t mib : b.options().exchange_mib) {
    bench_size(b, mib);
    b.release();
  }
}

}  // namespace braid
