#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace braid {

// What the chosen sub-command will do; main runs it after parsing and returns its value to the shell.
using Action = std::function<int()>;

// One file per sub-command. Each adds its options to the app and, when chosen, sets `action`.
void add_train_command(CLI::App& app, Action& action);
void add_data_command(CLI::App& app, Action& action);        // demo, inspect, and those of data_*.cpp
void add_tokenize_commands(CLI::App& data, Action& action);  // tokenize, dump, train-tokenizer, verify
void add_convert_commands(CLI::App& data, Action& action);   // convert, merge, split
void add_replay_command(CLI::App& data, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_generate_command(CLI::App& app, Action& action);
void add_config_command(CLI::App& app, Action& action);  // check, print, explain, diff, schema
void add_plan_command(CLI::App& app, Action& action);
void add_ckpt_command(CLI::App& app, Action& action);   // inspect, verify, diff, import, export
void add_bench_command(CLI::App& app, Action& action);  // operators, step
void add_plot_command(CLI::App& app, Action& action);
void add_report_command(CLI::App& app, Action& action);
void add_watch_command(CLI::App& app, Action& action);
void add_ablate_command(CLI::App& app, Action& action);
void add_doctor_command(CLI::App& app, Action& action);
void add_parity_command(CLI::App& app, Action& action);
void add_selftest_command(CLI::App& app, Action& action);  // isolation

}  // namespace braid
