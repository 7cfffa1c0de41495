#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "kernels/core/durable_file.h"
#include "kernels/core/error.h"
#include "kernels/core/nearest_words.h"
#include "trainer/cli/commands.h"
#include "trainer/metrics/loss_curve.h"
#include "trainer/metrics/run_search.h"

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
  const std::string metrics = metrics_of_run(run_dir);
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

void add_plot_command(Command app) {
  auto options = std::make_shared<Options>();
  const Command command =
      app.command("plot", "Loss curve of a run, or of several over each other, in the terminal and as SVG");
  command.option("run_dirs", options->run_dirs, "run folders").required();
  command
      .option("--field", options->fields,
              "metric to draw, repeatable; default: training and held-out loss, of several runs the training loss")
      .one_at_a_time();
  command.option("--svg", options->svg,
                 "SVG file; default loss.svg in the run folder, of several runs overlay.svg in the first");
  command.option("--width", options->width, "columns of the terminal plot; default: those of the terminal, at most 120")
      .whole(30, 1000);
  command.option("--height", options->height, "lines of the terminal plot").whole(8, 1000).show_default();
  command.runs([options] { return plot(*options); });
}

}  // namespace braid
