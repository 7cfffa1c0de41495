#include "trainer/bench/operator_bench.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>

#include "kernels/matmul.h"
#include "trainer/bench/workbench.h"

namespace braid {

const std::vector<OperatorFamily>& operator_families() {
  static const std::vector<OperatorFamily> families = {
      {"matmul", {"matmul", "linear_forward", "linear_backward_input", "linear_backward_weight"}, bench_matmul},
      {"copy", {"copy", "convert", "fill_zero"}, bench_copy},
      {"random", {"fill_normal", "fill_uniform"}, bench_random},
      {"embedding", {"embedding_forward", "embedding_backward"}, bench_embedding},
      {"rms_norm",
       {"rms_norm_forward", "rms_norm_backward", "add_rms_norm_forward", "add_rms_norm_backward"},
       bench_rms_norm},
      {"mtp_inputs", {"mtp_inputs_forward", "mtp_inputs_backward"}, bench_mtp_inputs},
      {"gdn_inputs", {"gdn_inputs_forward", "gdn_inputs_backward"}, bench_gdn_inputs},
      {"gated_delta_rule", {"gated_delta_rule_forward", "gated_delta_rule_backward"}, bench_gated_delta_rule},
      {"gated_rms_norm", {"gated_rms_norm_forward", "gated_rms_norm_backward"}, bench_gated_rms_norm},
      {"attention_inputs", {"attention_inputs_forward", "attention_inputs_backward"}, bench_attention_inputs},
      {"attention", {"attention_forward", "attention_backward"}, bench_attention},
      {"router", {"router_forward", "router_backward"}, bench_router},
      {"load_balance", {"load_balance", "add_counts"}, bench_load_balance},
      {"expert_rows",
       {"expert_order", "gather_rows", "combine_rows", "token_places", "local_expert_ids"},
       bench_expert_rows},
      {"experts", {"experts_forward", "experts_backward"}, bench_experts},
      {"swiglu", {"swiglu_forward", "swiglu_backward"}, bench_swiglu},
      {"lm_head_loss", {"lm_head_loss_forward", "lm_head_loss_forward_backward"}, bench_lm_head_loss},
      {"adamw", {"adamw_update"}, bench_adamw},
      {"sum_squares", {"sum_squares"}, bench_sum_squares},
      {"communicator", {"all_to_all_rows", "all_reduce", "reduce_scatter", "all_gather"}, bench_communicator, true},
  };
  return families;
}

bool is_chosen(const OperatorFamily& family, const std::string& op, const std::vector<std::string>& chosen) {
  if (chosen.empty()) return true;
  return std::any_of(chosen.begin(), chosen.end(),
                     [&](const std::string& name) { return family.name == name || op.starts_with(name); });
}

namespace {

bool any_chosen(const OperatorFamily& family, const std::vector<std::string>& chosen) {
  return std::any_of(family.ops.begin(), family.ops.end(),
                     [&](const char* op) { return is_chosen(family, op, chosen); });
}

double rate(double amount, double ms) { return ms > 0 ? amount / ms * 1e-9 : 0; }  // per second, in 1e12

}  // namespace

OperatorTiming judged(OperatorTiming t, const Ceilings& c) {
  const double memory_ms = c.bytes_per_ms > 0 ? t.work.bytes / c.bytes_per_ms : 0;
  const double compute_ms = c.flop_per_ms > 0 ? t.work.flop / c.flop_per_ms : 0;
  const double link_ms = c.link_bytes_per_ms > 0 ? t.work.link_bytes / c.link_bytes_per_ms : 0;
  const double floor_ms = std::max({memory_ms, compute_ms, link_ms});
  t.bound = floor_ms == memory_ms ? Bound::kMemory : floor_ms == compute_ms ? Bound::kCompute : Bound::kLink;
  t.share = t.ms > 0 ? floor_ms / t.ms : 0;
  return t;
}

void check_operator_names(const std::vector<std::string>& ops) {
  std::string names;
  for (const OperatorFamily& family : operator_families())
    for (const char* op : family.ops) names += concat(names.empty() ? "" : ", ", op);
  for (const std::string& op : ops) {
    const auto& families = operator_families();
    const bool known = !op.empty() && std::any_of(families.begin(), families.end(),
                                                  [&](const auto& family) { return any_chosen(family, {op}); });
    check<ConfigError>(known, "--op ", op, ": no operator's name begins so; there are ", names);
  }
}

void check_operators_run(const std::vector<std::string>& ops, int num_ranks) {
  for (const std::string& op : ops) {
    const auto& families = operator_families();
    const bool possible = std::any_of(families.begin(), families.end(), [&](const auto& family) {
      return any_chosen(family, {op}) && (num_ranks > 1 || !family.needs_ranks);
    });
    check<ConfigError>(possible, "--op ", op, ": there is a single rank, but a collective needs two or more; start ",
                       "with mpirun -n 2 braid bench");
  }
}

Ceilings measure_ceilings(Context& ctx, Communicator& world, const OperatorBenchOptions& o) {
  Ceilings ceilings;
  {
    Workbench bench(ctx, world, o, {});
    const int64_t M = o.product_size;
    Tensor c = bench.empty({M, M}, bench.activation());
    const Tensor a = bench.normal({M, M}, bench.activation()), b = bench.normal({M, M}, bench.activation());
    const double ms =
        bench.median_ms([&](int) { matmul(bench.ctx(), c, a, Transpose::kNo, b, Transpose::kYes); }, Launch::kGraph);
    ceilings.flop_per_ms = 2.0 * double(M) * double(M) * double(M) / ms;
  }
  {
    Workbench bench(ctx, world, o, {});
    Tensor to = bench.empty({o.copy_bytes / 4}, DType::kF32);
    const Tensor from = bench.normal({o.copy_bytes / 4}, DType::kF32);
    const double ms = bench.median_ms([&](int) { copy(bench.ctx(), to, from); }, Launch::kDirect);
    ceilings.bytes_per_ms = 2.0 * double(from.bytes()) / ms;
  }
  if (world.size() > 1) {
    Workbench bench(ctx, world, o, {});
    const int64_t C = o.model.hidden_size, row_bytes = C * size_of(bench.activation());
    const int64_t rows = (o.exchange_mib.back() << 20) / row_bytes;
    const Tensor send = bench.normal({rows, C}, bench.activation());
    Tensor recv = bench.empty({rows, C}, bench.activation());
    std::vector<int64_t> send_rows(static_cast<size_t>(world.size())), recv_rows(send_rows);
    send_rows[(world.rank() + 1) % world.size()] = rows;
    recv_rows[(world.rank() + world.size() - 1) % world.size()] = rows;
    const double ms = bench.median_ms(
        [&](int) { world.all_to_all_rows(bench.ctx(), recv, recv_rows, send, send_rows); }, Launch::kDirect);
    ceilings.link_bytes_per_ms = double(send.bytes()) / ms;
  }
  return ceilings;
}

std::vector<OperatorTiming> bench_operators(Context& ctx, Communicator& world, const OperatorBenchOptions& options,
                                            const Ceilings& ceilings,
                                            const std::function<void(const OperatorTiming&)>& report) {
  std::vector<OperatorTiming> timings;
  for (const OperatorFamily& family : operator_families()) {
    if (!any_chosen(family, options.ops) || (family.needs_ranks && world.size() == 1)) continue;
    std::map<std::string, int> num_measured;
    Workbench bench(ctx, world, options,
                    [&](const std::string& op, const std::string& shape, const Work& work, double ms) {
                      ++num_measured[op];
                      timings.push_back(judged({op, shape, ms, work}, ceilings));
                      report(timings.back());
                    });
    family.bench(bench);
    for (const char* op : family.ops)
      check<ErrorOf<ExitCode::kInternal>>(!is_chosen(family, op, options.ops) || num_measured[op] > 0, "benchmark of ",
                                          family.name, ": ", op, " was not measured");
  }
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
