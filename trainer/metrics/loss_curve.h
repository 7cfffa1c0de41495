#pragma once

#include <string>
#include <utility>
#include <vector>

namespace braid {

struct CurveSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (step, value), steps never fall
};

// Reads series from a metrics.jsonl by field name. A torn last line is skipped.   Errors: IoError, DataError.
std::vector<CurveSeries> read_curves(const std::string& metrics_path, const std::vector<std::string>& fields);

// Names of all fields in a metrics.jsonl, sorted.   Errors: as read_curves.
std::vector<std::string> field_names(const std::string& metrics_path);

// A plot for the terminal: `width` x `height` characters (at least 30 x 8) with axes and a legend; colour only if asked
// for. The first series is a line, the others are marks at the mean of the values in a column. Braille and block
// characters if the environment's locale is UTF-8 (LC_ALL, LC_CTYPE, LANG), plain ASCII otherwise.
enum class TerminalColor { kNo, kYes };
std::string plot_in_terminal(const std::vector<CurveSeries>& series, int width, int height, TerminalColor color);

// The same as a self-contained SVG document with axes, ticks, legend and title. A series of more than 150 points is
// drawn pale, with a moving average over it.
std::string plot_as_svg(const std::vector<CurveSeries>& series, const std::string& title);

}  // namespace braid
