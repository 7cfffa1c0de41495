#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "kernels/core/enum_names.h"
#include "kernels/core/tensor.h"
#include "model/config.h"
#include "model/recomputation.h"
#include "parallel/process_mesh.h"
#include "trainer/optimizer/optimizer_config.h"
#include "trainer/optimizer/schedule.h"

namespace braid {

enum class DeviceChoice { kAuto, kCpu, kCuda };
template <>
struct EnumNames<DeviceChoice> {
  static constexpr std::array kNames = {"auto", "cpu", "cuda"};
};
enum class Precision { kFp64, kFp32, kBf16 };
template <>
struct EnumNames<Precision> {
  static constexpr std::array kNames = {"fp64", "fp32", "bf16"};
};

// Of weights and activations.
constexpr DType dtype_of_precision(Precision precision) {
  switch (precision) {
    case Precision::kFp64: return DType::kF64;
    case Precision::kFp32: return DType::kF32;
    case Precision::kBf16: return DType::kBF16;
  }
  return DType::kF32;
}

struct RunSection {
  std::string dir;
  int64_t steps = 0;
  double time_limit = 0;
  double hang_timeout = 120;
  int64_t check_replicas_interval = 0;
  int64_t rewind_steps = 0;
  template <class Visit>
  void visit(Visit&& key) {
    key("dir", dir, "run folder: metrics, checkpoints, resolved config");
    key("steps", steps, "optimizer updates of the whole run");
    key("time_limit", time_limit,
        "seconds after its start at which the program has saved and ended, exit code 75 (76 if checkpoint.contents is "
        "weights); 0 = none");
    key("hang_timeout", hang_timeout,
        "seconds without progress of any rank after which the job ends and the rank to blame is named; 0 = never");
    key("check_replicas_interval", check_replicas_interval,
        "steps after which the copies of all weights are compared bit for bit over the ranks; 0 = never");
    key("rewind_steps", rewind_steps,
        "after a spike that comes out again when the step is computed again, or the third step in a row that is not "
        "finite, the run goes back to the newest checkpoint at least so many steps before it and leaves out "
        "the samples used since; 0 = never");
  }
};

struct TrainSection {
  int64_t micro_batch_size = 1;
  int64_t global_batch_size = 1;
  int64_t seq_length = 0;
  int64_t seed = 1234;
  template <class Visit>
  void visit(Visit&& key) {
    key("micro_batch_size", micro_batch_size, "sequences a rank computes at a time");
    key("global_batch_size", global_batch_size, "sequences per update over all ranks and micro-batches");
    key("seq_length", seq_length, "tokens per sequence");
    key("seed", seed, "of the initial weights and the order of the data");
  }
};

struct EvalSection {
  int64_t interval_steps = 0;
  int64_t sequences = 64;
  template <class Visit>
  void visit(Visit&& key) {
    key("interval_steps", interval_steps,
        "evaluate on the held-out part every so many steps and at the end; 0 = never");
    key("sequences", sequences, "held-out sequences per source and evaluation; 0 = all");
  }
};

enum class OnFailedSave { kContinue, kStop };
template <>
struct EnumNames<OnFailedSave> {
  static constexpr std::array kNames = {"continue", "stop"};
};

enum class CheckpointContents { kAll, kWeights };
template <>
struct EnumNames<CheckpointContents> {
  static constexpr std::array kNames = {"all", "weights"};
};

struct CheckpointSection {
  int64_t interval_steps = 0;
  int64_t keep = 3;
  CheckpointContents contents = CheckpointContents::kAll;
  bool async = true;
  OnFailedSave on_failure = OnFailedSave::kContinue;
  // The last save of a run and the one of a stop are waited for.
  bool in_background() const { return async && interval_steps > 0; }
  template <class Visit>
  void visit(Visit&& key) {
    key("interval_steps", interval_steps, "save every so many steps; 0 = only at the end and when stopped");
    key("keep", keep, "newest checkpoints that stay on disk; 0 = all");
    key("contents", contents,
        "what a checkpoint holds: all (masters and moments, 8 to 12 bytes a parameter, to go on with the run) or "
        "weights "
        "(as the model computes with them, 2 bytes a parameter in bf16: for eval, generate, export and init.from; no "
        "--resume)");
    key("async", async,
        "write while the training goes on, from a copy of the contents in host memory, shared by the ranks; false "
        "waits "
        "and takes 64 MiB a rank");
    key("on_failure", on_failure,
        "what a save that fails does to the run: continue (the third in a row and the last of the run stop it) or "
        "stop");
  }
};

struct LogSection {
  int64_t interval_steps = 1;
  bool tensorboard = false;
  std::vector<std::string> metrics;  // kGradNorms, or what layers offer (see model/layer_numbers.h)
  static constexpr const char* kGradNorms = "grad_norm";
  bool wants(const std::string& name) const { return std::find(metrics.begin(), metrics.end(), name) != metrics.end(); }
  template <class Visit>
  void visit(Visit&& key) {
    key("interval_steps", interval_steps, "print a console line every so many steps; files get every step");
    key("tensorboard", tensorboard, "also write event files for TensorBoard, into <run.dir>/tensorboard");
    key("metrics", metrics,
        "more to write about every step, as in [hidden/rms]: attention/first_token_share and attention/logit_max (CPU "
        "only), "
        "grad_norm, hidden/max, hidden/rms, moe/router_entropy");
  }
};

enum class Offload { kNone, kOptimizer };
template <>
struct EnumNames<Offload> {
  static constexpr std::array kNames = {"none", "optimizer"};
};

struct MemorySection {
  Recompute recompute = Recompute::kNone;
  int64_t recompute_further = 0;
  Offload offload = Offload::kNone;
  double offload_share = 1;
  Recomputation recomputation() const { return {recompute, recompute_further}; }
  template <class Visit>
  void visit(Visit&& key) {
    key("recompute", recompute,
        "what backward makes again instead of keeping it, with the same bits: none, elementwise (norms, gates, "
        "convolutions, gathered rows), moe (that and everything of the experts), layer (everything but the residual "
        "stream), auto (the first of these with which the run fits, and the fewest layers that go further)");
    key("recompute_further", recompute_further,
        "so many layers make again what the next of these says, those of Gated DeltaNet first");
    key("offload", offload,
        "optimizer: moments and the low bits of masters lie in the host's memory and pass through the GPU in every "
        "step, beside the forward of the next one, with the same bits; nothing changes on a CPU. Needs kind adamw");
    key("offload_share", offload_share,
        "at least so much of what offload names lies in the host's memory, more than 0 and at most 1; the rest, "
        "that of the first layers, stays on the GPU and is not copied");
  }
};

// Everything a run is made of. The YAML keys are the names below; see `braid config print`.
struct RunConfig {
  RunSection run;
  DeviceChoice device = DeviceChoice::kAuto;
  Precision precision = Precision::kFp32;
  std::vector<std::string> allow_slow;
  ParallelConfig parallel;
  MemorySection memory;
  TrainSection train;
  ModelConfig model;
  MtpConfig mtp;
  BalanceConfig balance;
  InitConfig init;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  DataConfig data;
  EvalSection eval;
  CheckpointSection checkpoint;
  LogSection log;

  template <class Visit>
  void visit(Visit&& key) {
    key("run", run, "the run");
    key("device", device, "where to compute; auto takes a GPU if the build and the machine have one");
    key("precision", precision, "of weights and activations");
    key("allow_slow", allow_slow,
        "operators that may run slower than the GPU allows, as in [attention]; a bf16 run with others that would is "
        "refused");
    key("parallel", parallel, "how ranks share the work");
    key("memory", memory, "what a rank keeps of a step");
    key("train", train, "batches");
    key("model", model, "the model's shape, in the keys of transformers' config.json");
    key("mtp", mtp, "multi-token prediction");
    key("balance", balance, "load balance of the experts");
    key("init", init, "initial weights");
    key("optimizer", optimizer, "how gradients change weights");
    key("schedule", schedule, "learning rate over the run");
    key("data", data, "token sources");
    key("eval", eval, "held-out evaluation");
    key("checkpoint", checkpoint, "saving");
    key("log", log, "console and metrics");
  }
};

}  // namespace braid
