#pragma once

#include <array>

#include "trainer/cli/options.h"

namespace braid {

// One file for each, or for several of `data`: their options and what they do.
void add_train_command(Command app);
void add_data_command(Command app);        // demo, inspect, and those of data_*.cpp
void add_tokenize_commands(Command data);  // tokenize, dump, train-tokenizer, verify
void add_convert_commands(Command data);   // convert, merge, split
void add_replay_command(Command data);
void add_eval_command(Command app);
void add_generate_command(Command app);
void add_config_command(Command app);  // check, print, explain, diff, schema
void add_plan_command(Command app);
void add_ckpt_command(Command app);   // inspect, verify, diff, import, export
void add_bench_command(Command app);  // operators, step
void add_plot_command(Command app);
void add_report_command(Command app);
void add_watch_command(Command app);
void add_ablate_command(Command app);
void add_doctor_command(Command app);
void add_parity_command(Command app);
void add_selftest_command(Command app);  // isolation

// In the order of the help.
inline constexpr std::array kAddCommands = {
    add_train_command, add_eval_command,   add_generate_command, add_plan_command,   add_config_command,
    add_data_command,  add_ckpt_command,   add_bench_command,    add_plot_command,   add_report_command,
    add_watch_command, add_ablate_command, add_doctor_command,   add_parity_command, add_selftest_command};

}  // namespace braid
