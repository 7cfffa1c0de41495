#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <string_view>
#include <type_traits>

#include "kernels/cases/operator_case.h"
#include "kernels/core/moment_codes.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/config_visit.h"

namespace braid {
namespace {

constexpr int64_t kMostLayers = 10'000;
constexpr int64_t kMostParameters = 10'000'000'000'000;
constexpr int64_t kMostTokens = int64_t{1} << 23;  // of a micro-batch: to count the memory of more takes minutes
constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();  // products of two still fit

// Comparisons are written so that a NaN fails them.
template <class Value, class... Parts>
void check_value(bool ok, const std::string& key, const Value& value, const Parts&... rule) {
  if (!ok) throw ConfigError(concat(key, " is ", yaml_text(value), ", but ", rule...));
}

void check_count(const std::string& key, int64_t value, int64_t smallest) {
  check_value(value >= smallest && value <= kMaxCount, key, value, "must be within ", smallest, " and ", kMaxCount);
}
void check_not_negative(const std::string& key, double value) {
  check_value(value >= 0 && value <= std::numeric_limits<double>::max(), key, value, "must be at least 0");
}
void check_positive(const std::string& key, double value) {
  check_value(value > 0 && value <= std::numeric_limits<double>::max(), key, value, "must be greater than 0");
}
void check_share_below_one(const std::string& key, double value) {
  check_value(value >= 0 && value < 1, key, value, "must be at least 0 and less than 1");
}

std::string list_text(const std::vector<int64_t>& values) {
  std::string text;
  for (const int64_t value : values) text += concat(text.empty() ? "" : ", ", value);
  return text;
}

std::vector<int64_t> divisors(int64_t n) {
  std::vector<int64_t> small, large;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    small.push_back(d);
    if (d * d != n) large.push_back(n / d);
  }
  small.insert(small.end(), large.rbegin(), large.rend());
  return small;
}

// Up to three of the candidates, those nearest to the value, in rising order.
std::vector<int64_t> nearest(int64_t value, std::vector<int64_t> candidates) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](int64_t a, int64_t b) { return std::abs(a - value) < std::abs(b - value); });
  if (candidates.size() > 3) candidates.resize(3);
  std::sort(candidates.begin(), candidates.end());
  return candidates;
}

std::vector<int64_t> nearest_multiples(int64_t value, int64_t unit) {
  const int64_t below = value / unit;
  std::vector<int64_t> candidates;
  for (int64_t multiple = std::max<int64_t>(1, below - 1); multiple <= below + 3; ++multiple)
    candidates.push_back(multiple * unit);
  return nearest(value, candidates);
}

void check_divides(const std::string& key, int64_t value, const std::string& divisor_key, int64_t divisor) {
  check_value(value % divisor == 0, key, value, "must be a multiple of ", divisor_key, ", ", divisor,
              "; nearest: ", list_text(nearest_multiples(value, divisor)));
}

void check_model(const ModelConfig& model) {
  ModelConfig copy = model;  // visit hands out references
  visit_keys(copy, "model", [](const std::string& key, auto& value, const char*) {
    const bool has_default = key.ends_with(".original_max_position_embeddings");
    if constexpr (std::is_same_v<decltype(value), int64_t&>) check_count(key, value, has_default ? 0 : 1);
  });
  check_divides("model.num_attention_heads", model.num_attention_heads, "model.num_key_value_heads",
                model.num_key_value_heads);
  check_divides("model.linear_num_value_heads", model.linear_num_value_heads, "model.linear_num_key_heads",
                model.linear_num_key_heads);
  const double rotary = model.partial_rotary_factor;
  check_value(rotary > 0 && rotary <= 1, "model.partial_rotary_factor", rotary, "must be greater than 0 and at most 1");
  check_value(model.rotary_dim() >= 2 && model.rotary_dim() % 2 == 0, "model.partial_rotary_factor", rotary,
              "must make an even number, at least 2, of the ", model.head_dim, " dimensions of a head rotate, not ",
              model.rotary_dim());
  check_positive("model.rope_theta", model.rope_theta);
  const RopeParameters& rope = model.rope_parameters;
  const double most = std::numeric_limits<double>::max();
  check_value(rope.factor >= 1 && rope.factor <= most, "model.rope_parameters.factor", rope.factor,
              "must be at least 1");
  if (rope.rope_type == RopeType::kDefault)
    check_value(rope.factor == 1, "model.rope_parameters.factor", rope.factor,
                "is for model.rope_parameters.rope_type linear or yarn");
  if (rope.rope_type == RopeType::kYarn) {
    check_positive("model.rope_parameters.beta_slow", rope.beta_slow);
    check_value(rope.beta_fast >= rope.beta_slow && rope.beta_fast <= most, "model.rope_parameters.beta_fast",
                rope.beta_fast, "must be at least model.rope_parameters.beta_slow, ", rope.beta_slow);
    check_not_negative("model.rope_parameters.attention_factor", rope.attention_factor);
    check_not_negative("model.rope_parameters.mscale", rope.mscale);
    check_not_negative("model.rope_parameters.mscale_all_dim", rope.mscale_all_dim);
    check_value(model.rope_theta > 1, "model.rope_theta", model.rope_theta, "must be greater than 1 for yarn");
  }
  check_positive("model.rms_norm_eps", model.rms_norm_eps);
  check_positive("model.initializer_range", model.initializer_range);
  check_value(model.num_experts_per_tok <= model.num_experts, "model.num_experts_per_tok", model.num_experts_per_tok,
              "must be at most model.num_experts, ", model.num_experts);
  const auto num_types = static_cast<int64_t>(model.layer_types.size());
  check_value(model.num_hidden_layers <= kMostLayers, "model.num_hidden_layers", model.num_hidden_layers,
              "must be at most ", kMostLayers);
  check_value(num_types == 0 || num_types == model.num_hidden_layers, "model.layer_types", model.layer_types,
              "must name model.num_hidden_layers types, ", model.num_hidden_layers, ", not ", num_types);

  // In doubles, as a product of three counts need not fit 64 bits. Without what is small beside these.
  const auto size = [](int64_t count) { return static_cast<double>(count); };
  const double attention = size(model.num_attention_heads) * size(model.head_dim),
               delta = size(model.linear_num_key_heads) * size(model.linear_key_head_dim) +
                       size(model.linear_num_value_heads) * size(model.linear_value_head_dim),
               experts = size(model.num_experts) * size(model.moe_intermediate_size) +
                         size(model.shared_expert_intermediate_size),
               rows =
                   2 * size(model.vocab_size) +
                   size(model.num_hidden_layers) * (3 * experts + size(model.num_experts) + 2 * attention + 2 * delta);
  check_value(rows * size(model.hidden_size) <= size(kMostParameters), "model.hidden_size", model.hidden_size,
              "makes, with the other sizes, more than ", kMostParameters, " parameters, the most that are counted");

  // Values that config.json may hold and that are not built.
  check_value(model.hidden_act == "silu", "model.hidden_act", model.hidden_act, "only silu is supported");
  check_value(!model.attention_bias, "model.attention_bias", model.attention_bias, "only false is supported");
  check_value(model.attention_dropout == 0, "model.attention_dropout", model.attention_dropout, "only 0 is supported");
  check_value(!model.tie_word_embeddings, "model.tie_word_embeddings", model.tie_word_embeddings,
              "only false is supported");
}

// Sizes that no number of ranks makes right.
void check_batch_sizes(const RunConfig& config) {
  const TrainSection& train = config.train;
  check_count("train.micro_batch_size", train.micro_batch_size, 1);
  check_count("train.global_batch_size", train.global_batch_size, 1);
  check_count("train.seq_length", train.seq_length, 2);
  check_value(train.seq_length <= config.model.max_position_embeddings, "train.seq_length", train.seq_length,
              "must be at most model.max_position_embeddings, ", config.model.max_position_embeddings);
  check_value(train.micro_batch_size <= kMostTokens / train.seq_length, "train.micro_batch_size",
              train.micro_batch_size, "times train.seq_length ", train.seq_length, " are more tokens than ",
              kMostTokens, ", the most of which memory is counted");
}

void check_batches(const RunConfig& config) {
  const TrainSection& train = config.train;
  check_divides("train.global_batch_size", train.global_batch_size, "train.micro_batch_size", train.micro_batch_size);
  check_value(train.seed >= 0, "train.seed", train.seed, "must be at least 0");
  const double tokens = static_cast<double>(config.run.steps) * static_cast<double>(train.global_batch_size) *
                        static_cast<double>(train.seq_length);
  check_value(tokens < 9e18, "run.steps", config.run.steps, "that many steps of ", train.global_batch_size,
              " sequences of ", train.seq_length, " tokens are more tokens than 64 bits can count");
}

void check_allow_slow(const std::vector<std::string>& operators) {
  std::string known;
  const std::vector<std::string> names = cases::operator_names();
  for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
  for (const std::string& name : operators)
    check_value(std::find(names.begin(), names.end(), name) != names.end(), "allow_slow", name,
                "is no operator; there are ", known);
}

void check_memory(const RunConfig& config) {
  const int64_t further = config.memory.recompute_further;
  check_count("memory.recompute_further", further, 0);
  check_value(further == 0 || config.memory.recompute < Recompute::kLayer, "memory.recompute_further", further,
              "must be 0 beside memory.recompute ", name_of_enum(config.memory.recompute));
  check_value(further <= num_recomputed_layers(config.model, config.mtp), "memory.recompute_further", further,
              "there are ", num_recomputed_layers(config.model, config.mtp), " layers, the MTP block's included");
  check_value(config.memory.offload == Offload::kNone || config.optimizer.kind == OptimizerKind::kAdamW,
              "memory.offload", config.memory.offload,
              "needs optimizer.kind adamw: Muon's updates take whole matrices, and products");
  const double share = config.memory.offload_share;
  check_value(share > 0 && share <= 1, "memory.offload_share", share, "must be more than 0 and at most 1");
  check_value(share == 1 || config.memory.offload != Offload::kNone, "memory.offload_share", share,
              "says nothing without memory.offload");
}

void check_optimizer(const OptimizerConfig& optimizer, Precision precision, const ModelConfig& model) {
  check_value(optimizer.gradient_dtype != GradientDType::kBf16 || precision == Precision::kBf16,
              "optimizer.gradient_dtype", std::string(name_of_enum(optimizer.gradient_dtype)),
              "needs precision: bf16; gradients of products in ", name_of_enum(precision), " are as wide");
  check_not_negative("optimizer.lr", optimizer.lr);
  check_share_below_one("optimizer.beta1", optimizer.beta1);
  check_share_below_one("optimizer.beta2", optimizer.beta2);
  check_positive("optimizer.eps", optimizer.eps);
  check_share_below_one("optimizer.muon_momentum", optimizer.muon_momentum);
  check_value(optimizer.moment_dtype != MomentDType::kBf16 || optimizer.muon_momentum <= 0.99,
              "optimizer.muon_momentum", optimizer.muon_momentum,
              "must be at most 0.99 where moments are stored in bf16: smaller steps would be rounded away");
  check_positive("optimizer.muon_update_rms", optimizer.muon_update_rms);
  check_not_negative("optimizer.weight_decay", optimizer.weight_decay);
  check_not_negative("optimizer.max_grad_norm", optimizer.max_grad_norm);
  const std::string moment_dtype(name_of_enum(optimizer.moment_dtype));
  check_value(optimizer.moment_dtype == MomentDType::kFp32 || optimizer.beta2 <= 0.999, "optimizer.beta2",
              optimizer.beta2, "must be at most 0.999 where moments are stored in ", moment_dtype,
              ": what is rounded at random would add up");
  if (optimizer.moment_dtype != MomentDType::kInt8) return;
  check_value(optimizer.kind == OptimizerKind::kAdamW, "optimizer.moment_dtype", moment_dtype,
              "is of optimizer.kind adamw; Muon's momentum is fp32 or bf16");
  check_value(optimizer.beta1 <= 0.95, "optimizer.beta1", optimizer.beta1,
              "must be at most 0.95 where moments are stored in int8: smaller steps would be rounded away");
  check_value(model.moe_intermediate_size * model.hidden_size % MomentCodes::kBlock == 0, "optimizer.moment_dtype",
              moment_dtype, "cuts moments in blocks of ", MomentCodes::kBlock,
              ", and an expert's matrix of model.moe_intermediate_size x model.hidden_size, ",
              model.moe_intermediate_size, " x ", model.hidden_size, ", ends inside one");
}

// A run may be shorter than its warm-up or its decay: `run.steps` is what one cuts down to try something.
void check_schedule(const ScheduleConfig& schedule) {
  const int64_t warmup = schedule.warmup_steps, decay = schedule.decay_steps;
  check_count("schedule.warmup_steps", warmup, 0);
  check_count("schedule.decay_steps", decay, 0);
  if (schedule.kind == ScheduleKind::kLinear || schedule.kind == ScheduleKind::kCosine)
    check_value(decay == 0 || decay > warmup, "schedule.decay_steps", decay,
                "must be 0 or greater than schedule.warmup_steps, ", warmup, ", which it includes");
  check_value(schedule.min_lr_ratio >= 0 && schedule.min_lr_ratio <= 1, "schedule.min_lr_ratio", schedule.min_lr_ratio,
              "must be within 0 and 1");
}

void check_files(const TokenFiles& files, const std::string& key, std::set<std::string>& names) {
  const std::string_view legal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
  check_value(!files.name.empty() && files.name.find_first_not_of(legal) == std::string::npos, key + ".name",
              files.name, "must be one or more of A-Z a-z 0-9 _ . - as metrics and files are named after it");
  check_value(files.name.size() <= 100, key + ".name", files.name, "must be at most 100 characters long");
  check_value(names.insert(files.name).second, key + ".name", files.name, "another source has that name already");
  const int kinds = !files.shards.empty() + !files.text.empty() + !files.dataset.empty();
  check<ConfigError>(kinds == 1, key, " (", files.name, ") must have one of dataset, shards and text, but has ",
                     kinds == 0 ? "none" : concat(kinds));
  for (const std::string& path : files.shards) check_value(!path.empty(), key + ".shards", path, "is no path");
  for (const std::string& path : files.text) check_value(!path.empty(), key + ".text", path, "is no path");
}

// Each source has its weights or its budget, and at every step some source has a weight.
void check_mixture(const RunConfig& config) {
  const std::vector<SourceConfig>& sources = config.data.sources;
  const bool with_budgets = sources.front().tokens != 0;
  double all_tokens = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    const SourceConfig& source = sources[i];
    const std::string key = concat("data.sources[", i, "]");
    check_value(source.tokens >= 0, key + ".token_budget", source.tokens, "must be at least 0");
    check<ConfigError>((source.tokens != 0) == with_budgets, key, " (", source.name, ") has ",
                       with_budgets ? "no tokens" : "tokens", ", but ", sources.front().name,
                       with_budgets ? " has" : " has none", "; all sources have a budget of tokens, or none");
    check<ConfigError>(!with_budgets || source.weight_changes.empty(), key, " (", source.name,
                       ") has a token_budget and weight_changes, but a budget is spread over the whole run");
    all_tokens += static_cast<double>(source.tokens);
    int64_t last = 1;
    double largest = source.weight;
    check_not_negative(key + ".weight", source.weight);
    for (size_t c = 0; c < source.weight_changes.size(); ++c) {
      const WeightChange& change = source.weight_changes[c];
      const std::string place = concat(key, ".weight_changes[", c, "]");
      check_count(place + ".from_step", change.from_step, 2);
      check_value(change.from_step > last, place + ".from_step", change.from_step, "must be greater than that of the ",
                  "change before it, ", last);
      check_not_negative(place + ".weight", change.weight);
      last = change.from_step;
      largest = std::max(largest, change.weight);
    }
    check_value(largest > 0, key + ".weight", source.weight,
                "must be greater than 0, at the begin or by weight_changes");
  }
  for (const int64_t step : config.data.steps_of_weights()) {
    double sum = 0;
    for (const SourceConfig& source : sources) sum += source.weight_at(step);
    check<ConfigError>(sum > 0, "data.sources: from step ", step, " on all weights are 0");
  }
  const double step_tokens =
      static_cast<double>(config.train.global_batch_size) * static_cast<double>(config.train.seq_length);
  const double run_tokens = static_cast<double>(config.run.steps) * step_tokens;
  check<ConfigError>(!with_budgets || run_tokens < all_tokens + step_tokens, "run.steps is ", config.run.steps,
                     ", which takes ", static_cast<int64_t>(run_tokens),
                     " tokens, but the budgets of data.sources sum to ", static_cast<int64_t>(all_tokens), "; ",
                     static_cast<int64_t>(std::ceil(all_tokens / step_tokens)), " steps use them up");
}

void check_data(const RunConfig& config) {
  const DataConfig& data = config.data;
  check_share_below_one("data.validation_fraction", data.validation_fraction);
  check_count("data.prefetch_steps", data.prefetch_steps, 1);
  for (size_t i = 0; i < data.left_out.size(); ++i) {
    const std::string key = concat("data.left_out[", i, "]");
    check_count(key + ".after_step", data.left_out[i].after_step, 0);
    check_count(key + ".rows", data.left_out[i].rows, 1);
    check_value(i == 0 || data.left_out[i].after_step > data.left_out[i - 1].after_step, key + ".after_step",
                data.left_out[i].after_step, "must be greater than that of the entry before it");
  }
  check<ConfigError>(!data.sources.empty(), "data.sources is empty, but a run needs at least one source: ",
                     "data: {sources: [{name: mine, shards: [folder]}]}");
  std::set<std::string> names;
  for (size_t i = 0; i < data.sources.size(); ++i) check_files(data.sources[i], concat("data.sources[", i, "]"), names);
  for (size_t i = 0; i < data.validation_sets.size(); ++i)
    check_files(data.validation_sets[i], concat("data.validation_sets[", i, "]"), names);
  check_mixture(config);
}

}  // namespace

void check_model_config(const RunConfig& config) {
  check_model(config.model);
  check_value(config.mtp.depth == 0 || config.mtp.depth == 1, "mtp.depth", config.mtp.depth, "must be 0 or 1");
  check_not_negative("mtp.loss_weight", config.mtp.loss_weight);
  check_not_negative("balance.loss_weight", config.balance.loss_weight);
  check_not_negative("balance.z_loss_weight", config.balance.z_loss_weight);
  check_allow_slow(config.allow_slow);
  check_memory(config);
}

void check_step_config(const RunConfig& config) {
  check_value(config.precision != Precision::kBf16 || config.device != DeviceChoice::kCpu, "precision",
              config.precision, "the CPU computes in fp32 or fp64 only: choose precision fp32 or device cuda");
  check_value(config.precision != Precision::kFp64 || config.device != DeviceChoice::kCuda, "precision",
              config.precision, "a GPU computes in bf16 or fp32 only: choose one of them or device cpu");
  check_count("parallel.expert", config.parallel.expert, 1);
  const double room = config.parallel.max_rows_factor;
  check_value(room >= 0 && room <= std::numeric_limits<double>::max(), "parallel.max_rows_factor", room,
              "must be 0 or a positive number");
  const int64_t in_flight = config.parallel.micro_batches_in_flight;
  check_value(in_flight == 1 || in_flight == 2, "parallel.micro_batches_in_flight", in_flight, "must be 1 or 2");
  check_count("parallel.bucket_elements", config.parallel.bucket_elements, 0);
  check_batch_sizes(config);
  check_context(config);
  check_optimizer(config.optimizer, config.precision, config.model);
}

void check_config(const RunConfig& config) {
  check_model_config(config);
  check<ConfigError>(!config.run.dir.empty(), "run.dir is not set, but a run needs a folder for what it writes");
  check_count("run.steps", config.run.steps, 1);
  check_not_negative("run.time_limit", config.run.time_limit);
  check_count("run.check_replicas_interval", config.run.check_replicas_interval, 0);
  check_count("run.rewind_steps", config.run.rewind_steps, 0);
  check<ConfigError>(config.run.rewind_steps == 0 || config.checkpoint.contents == CheckpointContents::kAll,
                     "run.rewind_steps is ", config.run.rewind_steps,
                     ", but checkpoint.contents is weights, which no run goes back to");
  const double hang_timeout = config.run.hang_timeout;
  check_value(hang_timeout == 0 || (hang_timeout >= 1 && hang_timeout <= 1e6), "run.hang_timeout", hang_timeout,
              "must be 0 or at least 1 second and at most 1e6");
  check_step_config(config);
  check_batches(config);
  check_schedule(config.schedule);
  check_data(config);
  check_count("eval.interval_steps", config.eval.interval_steps, 0);
  check_count("eval.sequences", config.eval.sequences, 0);
  check_value(
      config.eval.interval_steps == 0 || config.data.validation_fraction > 0 || !config.data.validation_sets.empty(),
      "eval.interval_steps", config.eval.interval_steps, "data.validation_fraction 0 holds nothing out to evaluate on");
  check_count("checkpoint.interval_steps", config.checkpoint.interval_steps, 0);
  check_count("checkpoint.keep", config.checkpoint.keep, 0);
  check_count("log.interval_steps", config.log.interval_steps, 1);
}

// The parts of a row are as long, and the convolution reaches into the part before at most.
void check_context(const RunConfig& config) {
  const int64_t context = config.parallel.context, T = config.train.seq_length;
  check_count("parallel.context", context, 1);
  if (context == 1) return;
  const int64_t parts = RowShare{context}.num_parts(),
                least = std::max<int64_t>(1, config.model.linear_conv_kernel_dim - 1);
  check_value(T % parts == 0 && T >= parts * least, "parallel.context", context, "cuts rows into ", parts,
              " equal parts of at least ", least, " tokens, but train.seq_length is ", T);
  check_value(config.balance.scope == BalanceScope::kGlobalBatch, "parallel.context", context,
              "needs balance.scope global_batch: the others count the tokens of rows that one rank holds whole");
}

void check_config_for_ranks(const RunConfig& config, int64_t num_ranks) {
  check_step_config(config);
  const int64_t expert = config.parallel.expert, num_experts = config.model.num_experts;
  const std::vector<int64_t> legal = divisors(std::gcd(num_ranks, num_experts));
  check_value(num_ranks > 1 || expert == 1 || num_experts % expert != 0, "parallel.expert", expert,
              "there is only one rank; was mpirun forgotten? (mpirun -n ", expert,
              " braid ...) It must divide both the ", num_ranks, " ranks and the ", num_experts, " experts");
  check_value(std::find(legal.begin(), legal.end(), expert) != legal.end(), "parallel.expert", expert,
              "must divide both the ", num_ranks, " ranks and the ", num_experts,
              " experts; valid here: ", list_text(legal));

  const int64_t global = config.train.global_batch_size, micro = config.train.micro_batch_size;
  check_value(num_ranks % config.parallel.context == 0, "parallel.context", config.parallel.context, "must divide the ",
              num_ranks, " ranks");
  num_ranks /= config.parallel.context;  // those who share rows are one to the data
  const std::string ranks = config.parallel.context == 1 ? "ranks" : "(ranks / parallel.context)";
  const int64_t unit = micro * num_ranks;
  if (global % unit == 0) return;
  std::string micro_sizes;
  if (global % num_ranks == 0)
    micro_sizes = concat("; or train.micro_batch_size ", list_text(nearest(micro, divisors(global / num_ranks))));
  check_value(false, "train.global_batch_size", global, "must be a multiple of train.micro_batch_size * ", ranks, " = ",
              micro, " * ", num_ranks, " = ", unit, "; nearest: ", list_text(nearest_multiples(global, unit)),
              micro_sizes);
}

}  // namespace braid
