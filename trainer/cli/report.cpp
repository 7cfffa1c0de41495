#include "trainer/report/report.h"

#include <cstdio>
#include <memory>

#include "kernels/core/durable_file.h"
#include "trainer/cli/commands.h"

namespace braid {

void add_report_command(Command app) {
  struct Options {
    std::vector<std::string> runs;
    std::string out, csv, title;
  };
  auto options = std::make_shared<Options>();
  const Command command = app.command("report", "Compare runs in one HTML file that needs nothing else");
  command.option("runs", options->runs, "run folders; the others are compared with the first").required();
  command.option("--out", options->out, "HTML file").required();
  command.option("--csv", options->csv, "also write every step of every run as CSV");
  command.option("--title", options->title, "heading of the report");
  command.runs([options] {
    std::vector<RunData> runs;
    for (const std::string& dir : options->runs) runs.push_back(read_run(dir));
    make_names_differ(runs);
    std::string title = options->title;
    if (title.empty())
      title = runs.size() == 1 ? "Run " + runs[0].name : "Comparison of " + std::to_string(runs.size()) + " runs";
    write_output(options->out, report_as_html(runs, title));
    std::printf("wrote %s\n", options->out.c_str());
    if (!options->csv.empty()) {
      write_output(options->csv, report_as_csv(runs));
      std::printf("wrote %s\n", options->csv.c_str());
    }
    return 0;
  });
}

}  // namespace braid
