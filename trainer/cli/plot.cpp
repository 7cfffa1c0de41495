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
#include "kernels/core/nearest_words.h"
#include "trainer/cli/commands.h"
#include "trainer/cli/numbers.h"
#include "trainer/metrics/loss_curve.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> run_dirs;
  std::string svg;
  std::vector<std::string> fields;
  int width = 0, height = 24;  // 0: that of the terminal
};

std::vector<std::string> loss_fields(const std::string& metrics) {
  std::vector<std::string> fields = {"train/loss_lm"};
  for (const std::string& name : field_names(metrics))
    if (name.starts_with("val/") && name.ends_with("/loss")) fields.push_back(name);
  return fields;
}

int terminal_width() {
  winsize size = {};
  const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? std::clamp<int>(size.ws_col, 30, 120) : 100;
}

// The curves of one run; of several, one field unless others are asked for, each with the name of its run.
std::vector<CurveSeries> curves_of(const Options& options, const std::string& run_dir) {
  const bool several = options.run_dirs.size() > 1;
  const std::string metrics = (fs::path(run_dir) / "metrics.jsonl").string();
  std::vector<std::string> fields = options.fields;
  if (fields.empty()) fields = several ? std::vector<std::string>{"train/loss_lm"} : loss_fields(metrics);
  std::vector<CurveSeries> series = read_curves(metrics, fields);
  for (CurveSeries& s : series) {
    check<DataError>(!s.points.empty(), metrics, ": no line has a value of ", s.name,
                     "; it has: ", joined(field_names(metrics), ", "));
    if (several) s.name = fields.size() > 1 ? run_dir + " " + s.name : run_dir;
  }
  return series;
}

int plot(const Options& options) {
  std::vector<CurveSeries> series;
  for (const std::string& run_dir : options.run_dirs)
    for (CurveSeries& s : curves_of(options, run_dir)) series.push_back(std::move(s));

  const bool color = isatty(STDOUT_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr;
  std::fputs(plot_in_terminal(series, options.width > 0 ? options.width : terminal_width(), options.height,
                              color ? TerminalColor::kYes : TerminalColor::kNo)
                 .c_str(),
             stdout);
  const bool several = options.run_dirs.size() > 1;
  const std::string name = several ? "overlay.svg" : "loss.svg";
  const std::string svg = options.svg.empty() ? (fs::path(options.run_dirs[0]) / name).string() : options.svg;
  const std::string field = options.fields.empty() ? "train/loss_lm" : joined(options.fields, ", ");
  write_output(svg, plot_as_svg(series, several ? field : options.run_dirs[0]));
  std::printf("wrote %s\n", svg.c_str());
  return 0;
}

}  // namespace

void add_plot_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("plot", "Loss curve of a run, or of several over each other, in the terminal and as SVG");
  command->add_option("run_dirs", options->run_dirs, "run folders")->required();
  command
      ->add_option("--field", options->fields,
                   "metric to draw, repeatable; default: training and held-out loss, of several runs the training loss")
      ->allow_extra_args(false);
  command->add_option("--svg", options->svg,
                      "SVG file; default loss.svg in the run folder, of several runs overlay.svg in the first");
  command
      ->add_option("--width", options->width,
                   "columns of the terminal plot; default: those of the terminal, at most 120")
      ->check(whole_number(30, 1000));
  command->add_option("--height", options->height, "lines of the terminal plot")
      ->check(whole_number(8, 1000))
      ->capture_default_str();
  command->callback([options, &action] { action = [options] { return plot(*options); }; });
}

}  // namespace braid
