#include "trainer/run_front.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

namespace braid {

std::vector<std::string> moe_layer_names(size_t count, bool with_mtp) {
  std::vector<std::string> names;
  for (size_t layer = 0; layer < count; ++layer)
    names.push_back(with_mtp && layer + 1 == count ? "mtp" : concat("layer_", layer < 10 ? "0" : "", layer));
  return names;
}

RunFront::RunFront(const RunConfig& config, ConsoleStyle style)
    : folder_(config.run.dir),
      pump_(STDOUT_FILENO),
      console_(stdout, style, [this](std::string text) { pump_.write(std::move(text)); }),
      with_tensorboard_(config.log.tensorboard) {}

void RunFront::open_metrics(int64_t step) {
  metrics_ = std::make_unique<MetricsWriter>(folder_.dir(), step);
  loads_ = std::make_unique<ExpertLoadsWriter>(folder_.dir(), step);
  if (with_tensorboard_) tensorboard_ = std::make_unique<TensorBoardWriter>(folder_.path("tensorboard"), step);
}

void RunFront::write_step(const MetricsLine& line, std::optional<ExpertLoads> loads) {
  files_.post([this, line, loads = std::move(loads)] {
    metrics_->write_train(line);
    write_beside(line, loads ? &*loads : nullptr);
  });
  console_.metrics(line.to_json());
}

void RunFront::write_evaluation(const MetricsLine& line) {
  write_line(line);
  console_.metrics(line.to_json());
}

void RunFront::write_line(const MetricsLine& line) {
  files_.post([this, line] {
    metrics_->write_jsonl(line);
    write_beside(line, nullptr);
  });
}

void RunFront::flush() {
  folder_.check_is_there();
  files_.wait();
  metrics_->flush();
}

// In the files beside the metrics.
void RunFront::write_beside(const MetricsLine& line, const ExpertLoads* loads) {
  bool ok = !tensorboard_ || tensorboard_->write(line);
  if (loads && tensorboard_)
    for (size_t layer = 0; ok && layer < loads->layers.size(); ++layer)
      ok = tensorboard_->write_histogram(loads->step, "moe/" + loads->layers[layer] + "/expert_load",
                                         loads->counts[layer]);
  if (!ok) {
    console_.warning(tensorboard_->path() + " cannot be written any more; the other files go on");
    tensorboard_.reset();
  }
  if (loads && loads_ && !loads_->write(*loads)) {
    console_.warning(folder_.path("expert_loads.jsonl") + " cannot be written any more; the other files go on");
    loads_.reset();
  }
}

MetricsLine training_line(int64_t step, int64_t tokens, const StepResult& r, const RunConfig& config, double seconds,
                          double wait_seconds) {
  MetricsLine line;
  line.set("step", step);
  line.set("tokens", tokens);
  line.set("train/loss", r.loss_lm + config.mtp.loss_weight * r.loss_mtp + config.balance.loss_weight * r.balance.loss +
                             config.balance.z_loss_weight * r.balance.z_loss);
  line.set("train/loss_lm", r.loss_lm);
  line.set("train/loss_mtp", r.loss_mtp);
  line.set("train/loss_balance", r.balance.loss);
  line.set("train/loss_router_z", r.balance.z_loss);
  line.set("train/grad_norm", r.grad_norm);
  line.set("train/lr", r.lr);
  line.set("perf/tokens_per_s", double(r.tokens) / seconds);
  line.set("perf/step_ms", seconds * 1e3);
  line.set("perf/data_wait_ms", wait_seconds * 1e3);
  const std::vector<std::string> layers = moe_layer_names(r.balance.loads.size(), config.mtp.on());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    const std::string prefix = "moe/" + layers[layer] + "/";
    line.set(prefix + "load_max_over_mean", r.balance.loads[layer].max_over_mean);
    line.set(prefix + "dead_experts", r.balance.loads[layer].dead);
  }
  line.set("moe/overflow_rounds", r.overflow_rounds);
  for (const NamedNumber& number : r.numbers) line.set(number.name, number.value);
  return line;
}

ExpertLoads expert_loads(int64_t step, const StepResult& r, const RunConfig& config) {
  ExpertLoads loads{step, moe_layer_names(r.balance.loads.size(), config.mtp.on()), {}};
  for (const ExpertLoad& load : r.balance.loads) loads.counts.push_back(load.counts);
  return loads;
}

MetricsLine save_line(int64_t step, const SaveReport& report) {
  MetricsLine line;
  line.set("step", step);
  line.set("checkpoint/step", report.step);
  line.set("checkpoint/stall_ms", report.stall_ms);
  line.set("checkpoint/write_ms", report.write_ms);
  line.set("checkpoint/read_back_ms", report.read_back_ms);
  line.set("checkpoint/bytes", report.bytes);
  line.set("checkpoint/write_gb_per_s", double(report.bytes) / report.write_ms / 1e6);
  return line;
}

std::string describe_save(const SaveReport& report) {
  return fmt::format("wrote {}, read back in {:.2f} s, the training waited {:.2f} s",
                     bytes_in_time(report.bytes, report.write_ms / 1e3), report.read_back_ms / 1e3,
                     report.stall_ms / 1e3);
}

std::string bytes_in_time(int64_t bytes, double seconds) {
  const bool is_large = bytes >= 1'000'000'000;
  return fmt::format("{:.2f} {} in {:.2f} s ({:.2f} GB/s)", double(bytes) / (is_large ? 1e9 : 1e6),
                     is_large ? "GB" : "MB", seconds, double(bytes) / std::max(seconds, 1e-9) / 1e9);
}

}  // namespace braid
