#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "trainer/cli/commands.h"
#include "trainer/metrics/loss_curve.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string run_dir, svg;
  std::vector<std::string> fields;
  int width = 0, height = 24;  // 0: that of the terminal
};

std::vector<std::string> loss_fields(const std::string& metrics) {
  std::vector<std::string> fields = {"train/loss_lm"};
  for (const std::string& name : field_names(metrics))
    if (name.starts_with("val/") && name.ends_with("/loss")) fields.push_back(name);
  return fields;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

int terminal_width() {
  winsize size = {};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? std::clamp<int>(size.ws_col, 30, 120) : 100;
}

int plot(const Options& options) {
  const fs::path run_dir(options.run_dir);
  const std::string metrics = (run_dir / "metrics.jsonl").string();
  const auto series = read_curves(metrics, options.fields.empty() ? loss_fields(metrics) : options.fields);
  for (const CurveSeries& s : series)
    check<DataError>(!s.points.empty(), metrics, ": no line has a value of ", s.name,
                     "; it has: ", join(field_names(metrics)));

  const bool color = isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  std::fputs(plot_in_terminal(series, options.width > 0 ? options.width : terminal_width(), options.height,
                              color ? TerminalColor::kYes : TerminalColor::kNo)
                 .c_str(),
             stdout);
  const std::string svg = options.svg.empty() ? (run_dir / "loss.svg").string() : options.svg;
  write_file_atomically(svg, plot_as_svg(series, options.run_dir));
  std::printf("wrote %s\n", svg.c_str());
  return 0;
}

}  // namespace

void add_plot_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plot", "Loss curve of a run in the terminal and as SVG");
  command->add_option("run_dir", options->run_dir, "run folder")->required();
  command->add_option("--field", options->fields, "metric to draw, repeatable; default: training and held-out loss")
      ->allow_extra_args(false);
  command->add_option("--svg", options->svg, "SVG file; default RUN_DIR/loss.svg");
  command
      ->add_option("--width", options->width,
                   "columns of the terminal plot; default: those of the terminal, at most 120")
      ->check(CLI::Range(30, 1000));
  command->add_option("--height", options->height, "lines of the terminal plot")
      ->check(CLI::Range(8, 1000))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return plot(*options); }; });
}

}  // namespace braid
