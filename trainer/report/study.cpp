#include "trainer/report/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/core/stream.h"
#include "trainer/metrics/markup.h"
#include "trainer/report/chart.h"
#include "trainer/report/statistics.h"

namespace braid {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string file_name(std::string text) {
  for (char& c : text)
    if (c == ':' || c == '=' || c == ',') c = c == ',' ? '_' : '-';
  return text;
}

double final_loss(const RunData& run) { return run.held_out.empty() ? run.final_loss() : run.final_held_out_loss(); }

// Tokens at which the mean held-out loss first is at most `loss`, between two evaluations linearly; NaN if never.
double tokens_to(const RunData& run, double loss) {
  if (run.held_out.empty()) return kNaN;
  const size_t evaluations = run.held_out.begin()->second.size();
  double last_tokens = 0, last_loss = kNaN;
  for (size_t i = 0; i < evaluations; ++i) {
    double mean = 0, tokens = 0;
    for (const auto& [name, points] : run.held_out) {
      if (i >= points.size()) return kNaN;
      mean += points[i].loss / double(run.held_out.size());
      tokens = double(points[i].tokens);
    }
    if (mean <= loss)
      return std::isfinite(last_loss) && last_loss > mean
                 ? last_tokens + (tokens - last_tokens) * (last_loss - loss) / (last_loss - mean)
                 : tokens;
    last_tokens = tokens, last_loss = mean;
  }
  return kNaN;
}

double mean_of_finite(const std::vector<double>& values) {
  double sum = 0;
  int64_t count = 0;
  for (const double v : values)
    if (std::isfinite(v)) sum += v, ++count;
  return count > 0 ? sum / double(count) : kNaN;
}

std::string tokens_text(double tokens) {
  if (!std::isfinite(tokens)) return "–";
  const char* unit = " kMGT";
  for (; tokens >= 999.5 && unit[1]; ++unit) tokens /= 1000;
  return *unit == ' ' ? fmt::format("{:.0f}", tokens) : fmt::format("{:#.3g}{}", tokens, *unit);
}

struct Row {
  std::vector<std::string> cells;
};

// Of the numbers that any variant's layers told, behind the columns that every study has.
std::set<std::string> layer_columns(const std::vector<VariantResult>& results) {
  std::set<std::string> names;
  for (const VariantResult& r : results)
    for (const auto& [name, values] : r.layer_numbers) names.insert(name);
  return names;
}

double mean_of(const VariantResult& r, const std::string& layer_number) {
  const auto found = r.layer_numbers.find(layer_number);
  return found == r.layer_numbers.end() ? kNaN : mean_of_finite(found->second);
}

// The first row is the head.
std::vector<Row> rows_of(const std::vector<VariantResult>& results) {
  std::vector<Row> rows = {{{"variant", "seeds", "loss", "spread", "against the first", "tokens to its loss",
                             "tokens/s", "largest norm weight"}}};
  const std::set<std::string> of_layers = layer_columns(results);
  rows[0].cells.insert(rows[0].cells.end(), of_layers.begin(), of_layers.end());
  for (size_t i = 0; i < results.size(); ++i) {
    const VariantResult& r = results[i];
    const Estimate loss = estimate(r.loss), difference = estimate(r.difference);
    const double norm = mean_of_finite(r.largest_norm_weight);
    rows.push_back(
        {{r.variant, std::to_string(r.seeds.size()), r.loss.empty() ? "–" : fmt::format("{:.4f}", loss.mean),
          std::isfinite(loss.standard_deviation) && r.loss.size() > 1 ? fmt::format("{:.4f}", loss.standard_deviation)
                                                                      : "–",
          i == 0 || difference.count == 0 ? "–" : to_text(difference, 4), tokens_text(r.tokens_to_base_loss),
          tokens_text(r.tokens_per_s), std::isfinite(norm) ? fmt::format("{:.4f}", norm) : "–"}});
    for (const std::string& name : of_layers) {
      const double value = mean_of(r, name);
      rows.back().cells.push_back(std::isfinite(value) ? fmt::format("{:.4f}", value) : "–");
    }
  }
  return rows;
}

size_t shown_length(const std::string& text) {  // characters of UTF-8
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::vector<StudyRun> expand_study(const StudyConfig& study, const std::string& dir) {
  std::vector<StudyRun> variants(1);
  variants[0].overrides = study.set;
  for (const AxisConfig& axis : study.axes) {
    std::vector<StudyRun> next;
    for (const StudyRun& so_far : variants)
      for (const VariantConfig& v : axis.variants) {
        StudyRun run = so_far;
        run.variant += concat(run.variant.empty() ? "" : ",", axis.name, "=", v.name);
        run.overrides.insert(run.overrides.end(), v.set.begin(), v.set.end());
        next.push_back(std::move(run));
      }
    variants = std::move(next);
  }
  std::vector<StudyRun> runs;
  for (const StudyRun& variant : variants)
    for (const int64_t seed : study.seeds) {
      StudyRun run = variant;
      run.seed = seed;
      run.dir = concat(dir, "/", file_name(variant.variant), "/seed-", seed);
      run.overrides.push_back(concat("train.seed=", seed));
      run.overrides.push_back("run.dir=\"" + run.dir + "\"");
      runs.push_back(std::move(run));
    }
  return runs;
}

std::string gpu_of_slot(int64_t slot, int64_t num_gpus, const char* visible) {
  const int64_t number = slot % num_gpus;
  if (visible == nullptr) return std::to_string(number);
  Loud<std::istringstream> names(visible);
  std::string name;
  for (int64_t i = 0; i <= number; ++i) std::getline(names, name, ',');
  return name;
}

std::vector<VariantResult> compare_study(const std::vector<StudyOutcome>& outcomes) {
  for (const StudyOutcome& a : outcomes)
    for (const StudyOutcome& b : outcomes) {
      if (a.run.seed != b.run.seed || a.data.data_order == b.data.data_order) continue;
      throw DataError(
          concat(a.run.dir, " and ", b.run.dir,
                 " have the same seed but did not see the same rows in the same order; their losses cannot be "
                 "compared"));
    }
  std::vector<VariantResult> results;
  for (const StudyOutcome& o : outcomes)
    if (std::none_of(results.begin(), results.end(), [&](auto& r) { return r.variant == o.run.variant; }))
      results.push_back({o.run.variant, {}, {}, {}, kNaN, kNaN, {}, {}});
  for (VariantResult& r : results) {
    std::vector<double> tokens, speeds;
    for (const StudyOutcome& o : outcomes) {
      if (o.run.variant != r.variant) continue;
      r.seeds.push_back(o.run.seed);
      r.loss.push_back(final_loss(o.data));
      speeds.push_back(o.data.median_tokens_per_s());
      r.largest_norm_weight.push_back(o.largest_norm_weight);
      for (const auto& [name, value] : o.data.layer_numbers) {
        r.layer_numbers[name].resize(r.seeds.size() - 1, kNaN);
        r.layer_numbers[name].push_back(value);
      }
      for (const StudyOutcome& base : outcomes) {
        if (base.run.variant != results[0].variant || base.run.seed != o.run.seed) continue;
        r.difference.push_back(final_loss(o.data) - final_loss(base.data));
        tokens.push_back(tokens_to(o.data, final_loss(base.data)));
      }
    }
    for (auto& [name, values] : r.layer_numbers) values.resize(r.seeds.size(), kNaN);
    const bool all_reach =
        !tokens.empty() && std::all_of(tokens.begin(), tokens.end(), [](double t) { return std::isfinite(t); });
    r.tokens_to_base_loss = all_reach ? mean_of_finite(tokens) : kNaN;
    r.tokens_per_s = median(speeds);
  }
  return results;
}

std::string study_table(const std::vector<VariantResult>& results) {
  const std::vector<Row> rows = rows_of(results);
  std::vector<size_t> widths(rows[0].cells.size());
  for (const Row& row : rows)
    for (size_t c = 0; c < row.cells.size(); ++c) widths[c] = std::max(widths[c], shown_length(row.cells[c]));
  std::string out;
  for (const Row& row : rows) {
    for (size_t c = 0; c < row.cells.size(); ++c) {
      const std::string padding(widths[c] - shown_length(row.cells[c]), ' ');
      out += (c > 0 ? "  " : "") + (c == 0 ? row.cells[c] + padding : padding + row.cells[c]);
    }
    out.erase(out.find_last_not_of(' ') + 1);
    out += '\n';
  }
  return out;
}

std::string study_table_as_html(const StudyConfig& study, const std::vector<VariantResult>& results) {
  std::string out;
  if (!study.question.empty()) out += "<p>" + escape_markup(study.question) + "</p>";
  if (!study.claim.empty()) out += "<p class=soft>" + escape_markup(study.claim) + "</p>";
  out += "<h2>Result</h2><div class=scroll><table>";
  const char* cell_tag = "th";
  for (const Row& row : rows_of(results)) {
    out += "<tr>";
    for (const std::string& cell : row.cells) out += fmt::format("<{0}>{1}</{0}>", cell_tag, escape_markup(cell));
    out += "</tr>";
    cell_tag = "td";
  }
  return out +
         "</table></div><p class=soft>Loss: the last held-out loss, mean over the seeds; spread: standard deviation "
         "over the "
         "seeds. Against the first: mean over the seeds of the difference from the first variant with the same seed, "
         "which "
         "saw the same rows in the same order, with its 95 % interval (Student's t). Tokens to its loss: tokens at "
         "which the "
         "variant reaches the first variant's final loss with every seed. Largest norm weight: absolute value over the "
         "zero-centred norms of the last checkpoint, mean over the seeds. What layers told (docs/metrics.md): mean "
         "over the "
         "layers, or the largest, of the last twentieth of the steps, mean over the seeds.</p>";
}

std::string study_results_as_csv(const std::vector<VariantResult>& results) {
  const auto number = [](double v) { return std::isfinite(v) ? fmt::format("{}", v) : std::string(); };
  std::string out =
      "variant,seeds,loss_mean,loss_sd,difference_mean,difference_half_width,tokens_to_first,tokens_per_s,"
      "largest_norm_weight";
  const std::set<std::string> of_layers = layer_columns(results);
  std::set<int64_t> seeds;
  for (const VariantResult& r : results) seeds.insert(r.seeds.begin(), r.seeds.end());
  for (const std::string& name : of_layers) out += "," + name;
  const auto head_by_seed = [&](const std::string& name) {
    for (const int64_t seed : seeds) out += concat(",", name, "_seed_", seed);
  };
  head_by_seed("loss");
  head_by_seed("largest_norm_weight");
  for (const std::string& name : of_layers) head_by_seed(name);
  out += '\n';
  for (const VariantResult& r : results) {
    const Estimate loss = estimate(r.loss), difference = estimate(r.difference);
    out += fmt::format("\"{}\",{},{},{},{},{},{},{},{}", r.variant, r.seeds.size(), number(loss.mean),
                       number(loss.standard_deviation), number(difference.mean), number(difference.half_width),
                       number(r.tokens_to_base_loss), number(r.tokens_per_s),
                       number(mean_of_finite(r.largest_norm_weight)));
    for (const std::string& name : of_layers) out += "," + number(mean_of(r, name));
    const auto by_seed = [&](const std::vector<double>& values) {
      for (const int64_t seed : seeds) {
        const auto run = std::find(r.seeds.begin(), r.seeds.end(), seed);
        out += concat(",", run == r.seeds.end() ? std::string() : number(values[run - r.seeds.begin()]));
      }
    };
    by_seed(r.loss);
    by_seed(r.largest_norm_weight);
    for (const std::string& name : of_layers) {
      const auto values = r.layer_numbers.find(name);
      by_seed(values == r.layer_numbers.end() ? std::vector<double>(r.seeds.size(), kNaN) : values->second);
    }
    out += '\n';
  }
  return out;
}

}  // namespace braid
