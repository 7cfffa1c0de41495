#include "trainer/bench/operator_bench.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/matmul.h"
#include "trainer/bench/stopwatch.h"
#include "trainer/device/operator_sizes.h"

namespace braid {
namespace {

using cases::Trial, cases::Var;

constexpr const char* kCollectives = "communicator";
constexpr double kPastCacheBytes = 160 << 20;           // what a turn reads has left the cache before it is read again,
constexpr int64_t kMostCopiesBytes = int64_t{2} << 30;  // unless that takes more memory than this

// A header's name and what is timed of it.
struct Family {
  std::string name;
  std::vector<std::string> ops;
};

const std::vector<Family>& families() {
  static const std::vector<Family> list = [] {
    std::vector<Family> all;
    const cases::Sizes sizes = bench_sizes(Device::kCpu, 64);
    for (const cases::OperatorCase& c : cases::operator_cases())
      all.push_back({c.name, cases::step_names(c.timed(sizes))});
    all.push_back({kCollectives, {"all_to_all_rows", "all_reduce", "reduce_scatter", "all_gather"}});
    return all;
  }();
  return list;
}

bool is_chosen(const std::string& family, const std::string& op, const std::vector<std::string>& chosen) {
  if (chosen.empty()) return true;
  return std::any_of(chosen.begin(), chosen.end(), [&](const std::string& name) {
    return family == name || (!name.empty() && op.starts_with(name));
  });
}

DType activation_on(const Context& ctx) { return ctx.on_cuda() ? DType::kBF16 : DType::kF32; }

double rate(double amount, double ms) { return ms > 0 ? amount / ms * 1e-9 : 0; }  // per second, in 1e12

using Report = std::function<void(const std::string& op, const std::string& shape, const Work& work, double ms)>;

// All chosen steps of a variant, in as many copies of it as the cache asks for.
void time_variant(const Context& device, Stopwatch& stopwatch, const cases::Variant& variant,
                  const std::function<bool(const std::string&)>& chosen, int max_turns, const Report& report) {
  Context ctx = device;  // with scratch memory of its own
  const DType activation = activation_on(ctx);
  Trial listed = Trial::listed(ctx, activation);
  variant.declare(listed);
  auto is_timed = [&](const Trial::Step& step) { return step.work.bytes > 0 && chosen(step.op); };
  double least = 0;
  for (const Trial::Step& step : listed.steps())
    if (is_timed(step) && (least == 0 || step.work.bytes < least)) least = step.work.bytes;
  if (least == 0) return;
  const int64_t affordable = std::max<int64_t>(1, kMostCopiesBytes / std::max<int64_t>(1, listed.bytes()));
  const auto wanted = static_cast<int64_t>(std::min(std::ceil(kPastCacheBytes / least), double(max_turns)));
  std::vector<Trial> copies;
  for (int64_t i = 0; i < std::min(wanted, affordable); ++i) {
    copies.push_back(Trial::timed(ctx, activation));
    variant.declare(copies.back());
    copies.back().run();  // what one step writes the next one reads
  }
  for (size_t i = 0; i < listed.steps().size(); ++i) {
    const Trial::Step& step = listed.steps()[i];
    if (!is_timed(step)) continue;
    const double ms = stopwatch.median_ms(
        ctx, [&](int turn) { copies[size_t(turn) % copies.size()].steps()[i].body(ctx); }, Launch::kGraph);
    const std::string by = step.work.by.empty() ? "" : concat(" (", step.work.by, ")");
    report(step.op, variant.label + by, {.bytes = step.work.bytes, .flop = step.work.flop}, ms);
  }
}

// Sizes are those of the whole tensor; what is counted is what a rank must send at least, whatever the algorithm.
void time_collectives(const Context& device, Stopwatch& stopwatch, Communicator& world, const OperatorBenchOptions& o,
                      int64_t mib, const Report& report) {
  Context ctx = device;
  Trial t = Trial::timed(ctx, activation_on(ctx));
  const int64_t ranks = world.size(), C = o.sizes.hidden, row_bytes = C * size_of(activation_on(ctx));
  const int64_t rows_each = (mib << 20) / row_bytes / ranks, part = (mib << 20) / int64_t{sizeof(float)} / ranks;
  const std::vector<int64_t> counts(static_cast<size_t>(ranks), rows_each);
  const Var send = t.input("send", {rows_each * ranks, C}, cases::normal()), recv = t.output("recv", send.shape());
  const Var full = t.input("full", {part * ranks}, cases::normal(), cases::Storage::kWide);
  const Var shard = t.input("shard", {part}, cases::normal(), cases::Storage::kWide);
  const double others = double(ranks - 1) / double(ranks), sent = double(full.bytes()) * others;
  auto time = [&](const char* op, double link_bytes, const std::function<void()>& body) {
    if (!is_chosen(kCollectives, op, o.ops)) return;
    const double ms = stopwatch.median_ms(
        ctx, [&](int) { body(); }, Launch::kDirect);
    report(op, concat(mib, " MiB, ", ranks, " ranks"), {.link_bytes = link_bytes}, ms);
  };
  time("all_to_all_rows", double(send.bytes()) * others,
       [&] { world.all_to_all_rows(ctx, recv, counts, send, counts); });
  time("all_reduce", 2 * sent, [&] { world.all_reduce(ctx, full, ReduceOp::kSum); });
  time("reduce_scatter", sent, [&] { world.reduce_scatter(ctx, shard, full, ReduceOp::kSum); });
  time("all_gather", sent, [&] { world.all_gather(ctx, full, shard); });
}

}  // namespace

cases::Sizes bench_sizes(Device device, int64_t num_tokens) {
  ModelConfig model;  // the released one
  if (device == Device::kCpu) {
    model.hidden_size = 512;
    model.vocab_size = 8192;
    model.num_attention_heads = 4;
    model.num_key_value_heads = 1;
    model.linear_num_key_heads = 2;
    model.linear_num_value_heads = 4;
    model.num_experts = 64;
    model.num_experts_per_tok = 8;
    model.moe_intermediate_size = 128;
  }
  cases::Sizes sizes = operator_sizes(model, device == Device::kCuda ? DType::kBF16 : DType::kF32);
  sizes.row_tokens = std::gcd(num_tokens, int64_t{4096});
  sizes.rows = num_tokens / sizes.row_tokens;
  if (device == Device::kCpu) sizes.shard_elements = 1 << 24, sizes.product_size = 1024, sizes.copy_bytes = 256 << 20;
  return sizes;
}

OperatorTiming judged(OperatorTiming t, const Ceilings& c) {
  const double memory_ms = c.bytes_per_ms > 0 ? t.work.bytes / c.bytes_per_ms : 0;
  const double compute_ms = c.flop_per_ms > 0 ? t.work.flop / c.flop_per_ms : 0;
  const double link_ms = c.link_bytes_per_ms > 0 ? t.work.link_bytes / c.link_bytes_per_ms : 0;
  const double floor_ms = std::max({memory_ms, compute_ms, link_ms});
  t.bound = floor_ms == memory_ms ? Bound::kMemory : floor_ms == compute_ms ? Bound::kCompute : Bound::kLink;
  t.share = t.ms > 0 ? floor_ms / t.ms : 0;
  return t;
}

std::vector<std::string> timed_operators(const std::vector<std::string>& ops, int num_ranks) {
  std::vector<std::string> names;
  for (const Family& family : families())
    for (const std::string& op : family.ops)
      if (is_chosen(family.name, op, ops) && (num_ranks > 1 || family.name != kCollectives)) names.push_back(op);
  return names;
}

void check_operator_names(const std::vector<std::string>& ops) {
  std::string names;
  for (const std::string& op : timed_operators({}, 2)) names += (names.empty() ? "" : ", ") + op;
  for (const std::string& op : ops)
    check<ConfigError>(!timed_operators({op}, 2).empty(), "--op ", op, ": no operator's name begins so; there are ",
                       names);
}

void check_operators_run(const std::vector<std::string>& ops, int num_ranks) {
  for (const std::string& op : ops)
    check<ConfigError>(
        !timed_operators({op}, num_ranks).empty(), "--op ", op,
        ": there is a single rank, but a collective needs two or more; start with mpirun -n 2 braid bench");
}

Ceilings measure_ceilings(Context& device, Communicator& world, const OperatorBenchOptions& o) {
  Ceilings ceilings;
  Stopwatch stopwatch(device, world, o.max_turns);
  const DType activation = activation_on(device);
  {
    Context ctx = device;
    Trial t = Trial::timed(ctx, activation);
    const int64_t M = o.sizes.product_size;
    const Var a = t.input("a", {M, M}, cases::normal()), b = t.input("b", {M, M}, cases::normal());
    const Var c = t.output("c", {M, M});
    const double ms = stopwatch.median_ms(
        ctx, [&](int) { matmul(ctx, c, a, Transpose::kNo, b, Transpose::kYes); }, Launch::kGraph);
    ceilings.flop_per_ms = 2.0 * double(M) * double(M) * double(M) / ms;
  }
  {
    Context ctx = device;
    Trial t = Trial::timed(ctx, activation);
    const Var from = t.input("from", {o.sizes.copy_bytes / 4}, cases::normal(), cases::Storage::kWide);
    const Var to = t.output("to", from.shape(), cases::Storage::kWide);
    const double ms = stopwatch.median_ms(
        ctx, [&](int) { copy(ctx, to, from); }, Launch::kDirect);
    ceilings.bytes_per_ms = 2.0 * double(from.bytes()) / ms;
  }
  if (world.size() > 1) {
    Context ctx = device;
    Trial t = Trial::timed(ctx, activation);
    const int64_t C = o.sizes.hidden, rows = (o.exchange_mib.back() << 20) / (C * size_of(activation));
    const Var send = t.input("send", {rows, C}, cases::normal()), recv = t.output("recv", {rows, C});
    std::vector<int64_t> send_rows(static_cast<size_t>(world.size())), recv_rows(send_rows);
    send_rows[size_t(world.rank() + 1) % send_rows.size()] = rows;
    recv_rows[size_t(world.rank() + world.size() - 1) % recv_rows.size()] = rows;
    const double ms = stopwatch.median_ms(
        ctx, [&](int) { world.all_to_all_rows(ctx, recv, recv_rows, send, send_rows); }, Launch::kDirect);
    ceilings.link_bytes_per_ms = double(send.bytes()) / ms;
  }
  return ceilings;
}

std::vector<OperatorTiming> bench_operators(Context& device, Communicator& world, const OperatorBenchOptions& o,
                                            const Ceilings& ceilings,
                                            const std::function<void(const OperatorTiming&)>& report) {
  std::vector<OperatorTiming> timings;
  Stopwatch stopwatch(device, world, o.max_turns);
  const Report add = [&](const std::string& op, const std::string& shape, const Work& work, double ms) {
    timings.push_back(judged({op, shape, ms, work}, ceilings));
    report(timings.back());
  };
  try {
    for (const cases::OperatorCase& c : cases::operator_cases()) {
      auto chosen = [&](const std::string& op) { return is_chosen(c.name, op, o.ops); };
      for (const cases::Variant& variant : c.timed(o.sizes))
        time_variant(device, stopwatch, variant, chosen, o.max_turns, add);
    }
  } catch (const OutOfMemoryError& e) {
    throw OutOfMemoryError(concat(e.what(), "; --tokens ", o.sizes.tokens() / 2, " takes about half"));
  }
  if (world.size() > 1)
    for (int64_t mib : o.exchange_mib) time_collectives(device, stopwatch, world, o, mib, add);
  return timings;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  gmtime_r(&now, &utc);
  char text[16];
  std::strftime(text, sizeof text, "%Y-%m-%d", &utc);
  return text;
}

std::string format_operator_head(const OperatorBenchHead& head) {
  char text[512];
  std::snprintf(text, sizeof text,
                "%s, driver %s, %s; %d rank%s, %lld tokens on each\n"
                "ceilings: copy %.2f TB/s, product %.1f TFLOP/s",
                head.device.name.c_str(), head.device.driver.c_str(), head.date.c_str(), head.num_ranks,
                head.num_ranks == 1 ? "" : "s", static_cast<long long>(head.num_tokens),
                rate(head.ceilings.bytes_per_ms, 1), rate(head.ceilings.flop_per_ms, 1));
  std::string result = text;
  if (head.ceilings.link_bytes_per_ms > 0) {
    std::snprintf(text, sizeof text, ", to the next rank %.3f TB/s", rate(head.ceilings.link_bytes_per_ms, 1));
    result += text;
  }
  std::snprintf(text, sizeof text, "\n\n%-30s %-38s %10s %7s %8s %12s\n", "op", "shape", "ms", "TB/s", "TFLOP/s",
                "% of ceiling");
  return result + text;
}

std::string format_operator_timing(const OperatorTiming& t) {
  char flops[16] = "", text[256];
  if (t.work.flop > 0) std::snprintf(flops, sizeof flops, "%.1f", rate(t.work.flop, t.ms));
  std::snprintf(text, sizeof text, "%-30s %-38s %10.4f %7.3f %8s %5.1f %s\n", t.op.c_str(), t.shape.c_str(), t.ms,
                rate(t.bytes_moved(), t.ms), flops, t.share * 100, name_of_enum(t.bound));
  return text;
}

std::string operator_bench_json(const OperatorBenchHead& head, const std::vector<OperatorTiming>& timings) {
  using Json = nlohmann::ordered_json;
  auto or_null = [](double value) { return value > 0 ? Json(value) : Json(); };
  Json json = {
      {"device", head.device.name},
      {"driver", head.device.driver},
      {"date", head.date},
      {"ranks", head.num_ranks},
      {"tokens", head.num_tokens},
      {"ceilings",
       {{"tb_per_s", rate(head.ceilings.bytes_per_ms, 1)},
        {"tflops", rate(head.ceilings.flop_per_ms, 1)},
        {"link_tb_per_s", or_null(rate(head.ceilings.link_bytes_per_ms, 1))}}},
      {"operators", Json::array()},
  };
  for (const OperatorTiming& t : timings)
    json["operators"].push_back({{"op", t.op},
                                 {"shape", t.shape},
                                 {"ms", t.ms},
                                 {"bytes", static_cast<int64_t>(t.bytes_moved())},
                                 {"flop", static_cast<int64_t>(t.work.flop)},
                                 {"tb_per_s", rate(t.bytes_moved(), t.ms)},
                                 {"tflops", or_null(rate(t.work.flop, t.ms))},
                                 {"share", t.share},
                                 {"bound", name_of_enum(t.bound)}});
  return json.dump();
}

}  // namespace braid
