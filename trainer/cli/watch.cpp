#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "kernels/core/error.h"
#include "trainer/cli/commands.h"
#include "trainer/metrics/console.h"
#include "trainer/metrics/loss_curve.h"
#include "trainer/report/run_data.h"

namespace braid {
namespace {

struct Size {
  int columns = 100, lines = 40;
};
Size terminal_size() {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {};
  return {std::clamp<int>(size.ws_col, 30, 160), std::max<int>(size.ws_row, 20)};
}

// A character for a load against the layer's mean: the fuller, the darker.
char load_mark(double load) {
  if (!(load > 0)) return '0';
  constexpr char kMarks[] = ".:-=+*#%@";
  const double share = (std::log2(load) + 3) / 6;
  return kMarks[std::clamp<int64_t>(std::llround(share * 8), 0, 8)];
}

// A line per layer, a character per expert (or for the one of its neighbours that is farthest from the mean).
std::string expert_map(const ExpertLoads& loads, int columns, size_t most_layers) {
  std::string out =
      "expert load at step " + std::to_string(loads.step) + "   0 no token   . 1/8   + the mean   @ 8 times and more\n";
  for (size_t layer = 0; layer < std::min(loads.layers.size(), most_layers); ++layer) {
    const std::vector<int64_t>& counts = loads.counts[layer];
    double total = 0;
    for (const int64_t count : counts) total += double(count);
    const auto experts = static_cast<int64_t>(counts.size()), width = std::min<int64_t>(experts, columns - 12);
    out += loads.layers[layer] + std::string(10 - std::min<size_t>(9, loads.layers[layer].size()), ' ');
    for (int64_t x = 0; x < width && total > 0; ++x) {
      double shown = 1, farthest = -1;
      for (int64_t e = x * experts / width; e < (x + 1) * experts / width; ++e) {
        const double load = double(counts[e]) * double(experts) / total;
        const double distance = load > 0 ? std::abs(std::log2(load)) : 1e9;
        if (distance > farthest) farthest = distance, shown = load;
      }
      out += load_mark(shown);
    }
    out += '\n';
  }
  if (loads.layers.size() > most_layers) out += concat("… ", loads.layers.size() - most_layers, " more layers\n");
  return out;
}

std::string screen(const RunData& run, const Size& size, bool color) {
  std::string out = run.dir;
  if (run.train.empty()) return out + ": no step yet\n";
  const TrainPoint& last = run.train.back();
  const int64_t steps = run.config ? run.config->run.steps : last.step;
  out += concat("  step ", last.step, "/", steps, run.finished() ? ", finished" : "");
  if (!run.finished() && last.step > 0)
    out += ", " + Console::format_duration(last.seconds / double(last.step) * double(steps - last.step)) + " left";
  out += '\n';
  const size_t layers = run.loads.empty() ? 0 : run.loads.back().layers.size();
  const auto map_lines = static_cast<int>(std::min<size_t>(layers, size.lines / 3));
  CurveSeries loss{"train/loss_lm", {}};
  for (const TrainPoint& p : run.train) loss.points.emplace_back(double(p.step), p.loss);
  std::vector<CurveSeries> series = {loss};
  for (const auto& [name, points] : run.held_out) {
    series.push_back({"val/" + name + "/loss", {}});
    for (const HeldOutPoint& p : points) series.back().points.emplace_back(double(p.step), p.loss);
  }
  out += plot_in_terminal(series, size.columns, std::max(10, size.lines - map_lines - 6),
                          color ? TerminalColor::kYes : TerminalColor::kNo);
  if (layers > 0) out += expert_map(run.loads.back(), size.columns, static_cast<size_t>(std::max(1, map_lines)));
  return out;
}

struct Options {
  std::string run;
  double interval_s = 2;
  bool once = false;
};

// On a terminal until the run is finished or the user interrupts; else once.
int watch(const Options& options) {
  const bool terminal = isatty(STDOUT_FILENO) == 1, again = terminal && !options.once;
  const bool color = terminal && std::getenv("NO_COLOR") == nullptr;
  for (;;) {
    const RunData run = read_run(options.run);
    if (again) std::fputs("\033[H\033[2J", stdout);
    std::fputs(screen(run, terminal_size(), color).c_str(), stdout);
    std::fflush(stdout);
    if (!again || run.finished()) return 0;
    std::this_thread::sleep_for(std::chrono::duration<double>(options.interval_s));
  }
}

}  // namespace

void add_watch_command(Command app) {
  auto options = std::make_shared<Options>();
  const Command command = app.command("watch", "Loss curve and expert loads of a run while it trains");
  command.option("run", options->run, "run folder").required();
  command.option("--interval", options->interval_s, "seconds between two looks").number(0.1, 3600).show_default();
  command.flag("--once", options->once, "one look; the default where the output is no terminal");
  command.runs([options] { return watch(*options); });
}

}  // namespace braid
