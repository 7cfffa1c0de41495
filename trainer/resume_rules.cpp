#include "trainer/resume_rules.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/config/config_reader.h"
#include "trainer/optimizer/schedule.h"

namespace braid {
namespace {

bool begins_with_one_of(const std::string& key, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const auto& prefix) { return key.starts_with(prefix); });
}

}  // namespace

bool leaves_steps_alone(const std::string& key) {
  return begins_with_one_of(
      key, {"run.", "device", "allow_slow", "parallel.", "memory.", "log.", "checkpoint.", "data.prefetch_steps"});
}

void check_resume_config(const RunConfig& stored, const RunConfig& config, const std::string& checkpoint_path,
                         const ResumeRules& rules) {
  // Evaluations change no step. Settled elsewhere: what came by init.* is in the checkpoint; data is compared by its
  // digest, its weights by check_mixture_so_far, what is left out of it by go_on_with; micro-batches below.
  static const std::vector<std::string> kFree = {"eval.",          "data.sources",           "data.validation_sets",
                                                 "data.left_out",  "train.micro_batch_size", "init.from",
                                                 "init.fresh_mtp", "init.resize_vocabulary"};
  static const std::vector<std::string> kOnPurpose = {"optimizer.lr", "schedule.", "train.global_batch_size",
                                                      "balance.", "train.micro_batch_size"};
  const auto is_overridden = [&](const std::string& key) {
    return std::find(rules.overrides.begin(), rules.overrides.end(), key) != rules.overrides.end();
  };
  for (const std::string& key : rules.overrides)
    check<ConfigError>(begins_with_one_of(key, kOnPurpose), "--override ", key, ": only optimizer.lr, schedule.*, ",
                       "train.global_batch_size, train.micro_batch_size and balance.* may differ on purpose");
  std::string differing;
  int64_t count = 0;
  const auto add = [&](const std::string& text) {
    if (++count <= 3) differing += (count > 1 ? ", " : "") + text;
  };
  for (const ConfigDifference& d : compare_configs(stored, config))
    if (!leaves_steps_alone(d.key) && !begins_with_one_of(d.key, kFree) && !is_overridden(d.key))
      add(concat(d.key, " was ", d.before, " and is ", d.after,
                 begins_with_one_of(d.key, kOnPurpose) ? concat(" (on purpose: --override ", d.key, ")") : ""));
  // Keys of the layout that the balance loss counts by.
  const BalanceConfig& balance = config.balance;
  const int64_t micro_before = stored.train.micro_batch_size, micro_now = config.train.micro_batch_size;
  const bool by_ranks = balance.scope == BalanceScope::kGlobalBatch && balance.counts == BalanceCounts::kRunning;
  const bool by_micro_batch = by_ranks || balance.scope == BalanceScope::kMicroBatch;
  if (balance.loss_weight != 0 && !is_overridden("train.micro_batch_size")) {
    const std::string why = concat(", which the balance loss counts by (balance.scope ", name_of_enum(balance.scope),
                                   ", balance.counts ", name_of_enum(balance.counts), ")");
    if (by_micro_batch && micro_before != micro_now)
      add(concat("train.micro_batch_size was ", micro_before, " and is ", micro_now, why));
    else if (by_ranks && rules.stored_ranks != rules.num_ranks)
      add(concat("the number of ranks was ", rules.stored_ranks, " and is ", rules.num_ranks, why));
  }
  check<CheckpointError>(count == 0, checkpoint_path, ": made with another config: ", differing,
                         count > 3 ? ", …" : "");
}

std::string note_of_schedule(const RunConfig& stored, const RunConfig& config, int64_t done) {
  if (done >= config.run.steps) return "";
  const auto lr = [](const RunConfig& c, int64_t step) {
    return c.optimizer.lr * lr_factor(c.schedule, step, c.run.steps);
  };
  const int64_t next = done + 1;
  const double now = lr(config, next);
  const std::string steps =
      concat("note: run.steps ", stored.run.steps, " -> ", config.run.steps, ": the learning rate ");
  const std::string end = fmt::format(" and ends at {:.3e}", lr(config, config.run.steps));
  if (next <= stored.run.steps && now == lr(stored, next))
    return fmt::format("{}of step {} stays {:.3e}{}", steps, next, now, end);
  const double reached = done > 0 ? lr(stored, done) : now;
  const bool rises = now > reached && next > config.schedule.warmup_steps;
  return fmt::format(
      "{}was {:.3e} at step {}, is {:.3e} at step {}{}{}", steps, reached, done, now, next, end,
      rises ? "; it rises, as the schedule ends with the run: schedule.kind wsd keeps it level until the end" : "");
}

}  // namespace braid
