#include "trainer/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/core/error.h"
#include "trainer/config/config_reader.h"
#include "trainer/metrics/markup.h"
#include "trainer/report/chart.h"
#include "trainer/report/heat_map.h"
#include "trainer/report/statistics.h"

namespace braid {
namespace {

constexpr const char* kStyle = R"css(
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2330;--soft:#5a6372;--line:#d9dee6;--card:#f6f7f9;
--k0:#0b5cad;--k1:#b3440c;--k2:#08744f;--k3:#8a2f86;--k4:#7a5b00;--k5:#444b57;--k6:#a3123f;--k7:#0a6f86}
@media (prefers-color-scheme:dark){:root{--bg:#12151b;--fg:#e7eaf0;--soft:#a3acba;--line:#333a46;--card:#1b2028;
--k0:#6cb2ff;--k1:#ff9d66;--k2:#5fd6a4;--k3:#e39be0;--k4:#e3c14f;--k5:#c3cad6;--k6:#ff8fb0;--k7:#63d3ea}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);overflow-wrap:anywhere;font:16px/1.5 system-ui,"Helvetica Neue",Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:16px}h1{font-size:1.6rem;margin:.4em 0}h2{font-size:1.2rem;margin:2em 0 .4em}
h3{font-size:1rem;margin:1.2em 0 .3em}p{margin:.4em 0}.soft,.none,figcaption{color:var(--soft)}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th:first-child,td:first-child,.text td,.text th{text-align:left}.text td{white-space:normal;overflow-wrap:anywhere}
.text td:nth-child(-n+4){white-space:nowrap}th{color:var(--soft);font-weight:600}
svg{display:block;width:100%;height:auto}svg.narrow{display:none}svg text{fill:var(--soft)}
.grid path{stroke:var(--line);fill:none}.zero{stroke:var(--fg);fill:none;stroke-width:1.2}
polyline{fill:none;stroke-linejoin:round}.r{stroke-width:1;opacity:.3}.s{stroke-width:2.2}svg text.end{font-weight:700}
.lead{fill:none;opacity:.6}
.k0{stroke:var(--k0)}.k1{stroke:var(--k1)}.k2{stroke:var(--k2)}.k3{stroke:var(--k3)}
.k4{stroke:var(--k4)}.k5{stroke:var(--k5)}.k6{stroke:var(--k6)}.k7{stroke:var(--k7)}
.s.k1{stroke-dasharray:9 4}.s.k2{stroke-dasharray:2.5 3}.s.k3{stroke-dasharray:12 3 2.5 3}.s.k4{stroke-dasharray:5 3}
.s.k5{stroke-dasharray:16 5}.s.k6{stroke-dasharray:8 3 2 3 2 3}.s.k7{stroke-dasharray:1.5 5}
svg text.k0{fill:var(--k0);stroke:none}svg text.k1{fill:var(--k1);stroke:none}svg text.k2{fill:var(--k2);stroke:none}
svg text.k3{fill:var(--k3);stroke:none}svg text.k4{fill:var(--k4);stroke:none}svg text.k5{fill:var(--k5);stroke:none}
svg text.k6{fill:var(--k6);stroke:none}svg text.k7{fill:var(--k7);stroke:none}
.key{display:inline-block;width:44px;vertical-align:middle}.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px}
figure{margin:0}figcaption{font-size:.8rem}.maps img{width:100%;height:88px;image-rendering:pixelated;border:1px solid var(--line);display:block}
.scale{display:flex;flex-wrap:wrap;gap:4px 14px;margin:.4em 0;font-size:.85rem}.scale i{display:inline-block;width:18px;height:14px;
border:1px solid var(--soft);margin-right:5px;vertical-align:-2px}.alarm{font-weight:700}.alarm:before{content:"\26a0  "}
footer{margin:3em 0 1em;color:var(--soft);font-size:.85rem}
@media (max-width:640px){svg.wide{display:none}svg.narrow{display:block}svg.key{display:inline-block}main{padding:12px}
th,td{padding:5px 6px}td:first-child,.text td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:8.5em}}
)css";

std::string number(double value, const char* format) {
  return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "–";
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  return s < 3600 ? fmt::format("{} min {:02} s", s / 60, s % 60)
                  : fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
}

// 999, 1.23k, 12.3M
std::string count(double value) {
  const char* unit = " kMGTP";
  for (; value >= 999.5 && unit[1]; ++unit) value /= 1000;
  return *unit == ' ' ? fmt::format("{:.0f}", value) : fmt::format("{:#.3g}{}", value, *unit);
}

// A stretch of the curve as charts draw it.
std::string line_sample(int style) {
  return fmt::format("<svg class=key viewBox=\"0 0 44 8\"><polyline class=\"s k{}\" points=\"0,4 44,4\"/></svg>",
                     style % kNumChartStyles);
}

std::string state_of(const RunData& run) {
  if (run.finished()) return "finished";
  for (auto e = run.events.rbegin(); e != run.events.rend(); ++e)
    if (e->event == "stopped") return "stopped";
    else if (e->event == "started" || e->event == "resumed") break;
  return "not at its end";
}

// Of the held-out sets, or the sources, of all runs.
template <class OfRun>
std::set<std::string> names_of(const std::vector<RunData>& runs, OfRun RunData::*by_name) {
  std::set<std::string> names;
  for (const RunData& run : runs)
    for (const auto& [name, data] : run.*by_name) names.insert(name);
  return names;
}

class Report {
 public:
  Report(const std::vector<RunData>& runs, int most_points, int map_pixels)
      : runs_(runs), most_points_(most_points), map_pixels_(map_pixels) {}

  std::string html(const std::string& title, const std::string& introduction) {
    out_ =
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,"
        "initial-scale=1\"><title>" +
        escape_markup(title) + "</title><style>" + kStyle + "</style><main><h1>" + escape_markup(title) + "</h1>" +
        introduction;
    runs_table();
    losses();
    sources();
    differences();
    config_differences();
    throughput();
    for (size_t i = 0; i < runs_.size(); ++i) expert_loads(runs_[i], static_cast<int>(i));
    events();
    std::set<std::string> builds;
    for (const RunData& run : runs_)
      if (!run.build.empty()) builds.insert(run.build);
    out_ +=
        "<footer>Losses are means over the valid tokens of the global batch, in nats. Time counts the steps, not "
        "evaluation and saving.";
    for (const std::string& build : builds) out_ += "<br>braid " + escape_markup(build);
    return out_ + "</footer></main></html>\n";
  }

 private:
  static std::string cell(const std::string& text) { return "<td>" + text + "</td>"; }
  std::string run_name(size_t i) const {
    return "<b>" + style_letter(static_cast<int>(i)) + "</b> " + line_sample(static_cast<int>(i)) + " " +
           escape_markup(runs_[i].name);
  }

  void runs_table() {
    const std::set<std::string> sets = names_of(runs_, &RunData::held_out);
    out_ += "<h2>Runs</h2><div class=scroll><table><tr><th>run<th>steps<th>tokens<th>training loss<th>";
    for (const std::string& set : sets) out_ += "held out: " + escape_markup(set) + "<th>";
    out_ += "tokens/s<th>time<th>state</tr>";
    for (size_t i = 0; i < runs_.size(); ++i) {
      const RunData& run = runs_[i];
      const bool empty = run.train.empty();
      out_ += "<tr>" + cell(run_name(i)) + cell(empty ? "0" : std::to_string(run.train.back().step)) +
              cell(empty ? "0" : count(double(run.train.back().tokens))) + cell(number(run.final_loss(), "{:.4f}"));
      for (const std::string& set : sets) {
        const auto found = run.held_out.find(set);
        out_ += cell(found == run.held_out.end() ? "–" : number(found->second.back().loss, "{:.4f}"));
      }
      const double speed = run.median_tokens_per_s();
      out_ += cell(std::isfinite(speed) ? count(speed) : "–") + cell(empty ? "–" : duration(run.train.back().seconds)) +
              cell(state_of(run)) + "</tr>";
    }
    out_ +=
        "</table></div><p class=soft>Training loss: mean over the last twentieth of the steps. Curves carry the run's "
        "letter at their end.</p>";
  }

  void chart(const ChartSpec& spec) {
    out_ += "<h3>" + escape_markup(spec.title) + "</h3>" + draw_chart(spec, ChartShape::kWide, most_points_) +
            draw_chart(spec, ChartShape::kNarrow, std::max(20, most_points_ / 3));
  }

  // Unit of a time axis that ends at `seconds`.
  static std::pair<double, std::string> time_unit(double seconds) {
    if (seconds < 180) return {1, "seconds"};
    return seconds < 3 * 3600 ? std::pair{60.0, std::string("minutes")} : std::pair{3600.0, std::string("hours")};
  }

  template <class Value>
  std::vector<ChartCurve> train_curves(double TrainPoint::*x, Value value) const {
    std::vector<ChartCurve> curves;
    for (size_t i = 0; i < runs_.size(); ++i) {
      curves.push_back({static_cast<int>(i), {}});
      for (const TrainPoint& p : runs_[i].train)
        curves.back().points.emplace_back(x ? p.*x : double(p.tokens), value(p));
    }
    return curves;
  }

  double longest() const {
    double seconds = 0;
    for (const RunData& run : runs_)
      if (!run.train.empty()) seconds = std::max(seconds, run.train.back().seconds);
    return seconds;
  }

  void losses() {
    const auto loss = [](const TrainPoint& p) { return p.loss; };
    const auto [unit, unit_name] = time_unit(longest());
    out_ += "<h2>Loss</h2><p class=soft>Pale: every step. Strong: moving average over a thirtieth of the run.</p>";
    chart({"Training loss by tokens", "tokens", "", train_curves(nullptr, loss), true});
    chart({"Training loss by time", unit_name + " of training", "", train_curves(&TrainPoint::seconds, loss), true,
           false, unit});
    const std::set<std::string> sets = names_of(runs_, &RunData::held_out);
    for (const std::string& set : sets) {
      ChartSpec spec{"Held-out loss by tokens: " + set, "tokens", "", {}};
      for (size_t i = 0; i < runs_.size(); ++i) {
        const auto found = runs_[i].held_out.find(set);
        if (found == runs_[i].held_out.end()) continue;
        spec.curves.push_back({static_cast<int>(i), {}});
        for (const HeldOutPoint& p : found->second) spec.curves.back().points.emplace_back(double(p.tokens), p.loss);
      }
      chart(spec);
    }
  }

  void sources() {
    const std::set<std::string> names = names_of(runs_, &RunData::sources);
    if (names.empty()) return;
    out_ +=
        "<h2>Data</h2><div class=scroll><table><tr><th>run<th>source<th>tokens<th>of all<th>times read<th>training "
        "loss</tr>";
    for (size_t i = 0; i < runs_.size(); ++i) {
      int64_t all = 0;
      for (const auto& [name, source] : runs_[i].sources) all += source.tokens;
      for (const auto& [name, source] : runs_[i].sources)
        out_ += "<tr>" + cell(run_name(i)) + cell(escape_markup(name)) + cell(count(double(source.tokens))) +
                cell(all > 0 ? fmt::format("{:.1f} %", 100 * double(source.tokens) / double(all)) : "–") +
                cell(fmt::format("{:.2f}", source.epochs)) + cell(number(source.final_loss(), "{:.4f}")) + "</tr>";
    }
    out_ +=
        "</table></div><p class=soft>Times read: 2.5 is in the middle of the third time. Training loss: mean over the "
        "steps of the last "
        "twentieth that have targets of the source.</p>";
    if (names.size() == 1) return;  // its loss is the training loss
    for (const std::string& name : names) {
      ChartSpec spec{"Training loss by tokens: " + name, "tokens", "", {}, true};
      for (size_t i = 0; i < runs_.size(); ++i) {
        const auto found = runs_[i].sources.find(name);
        if (found == runs_[i].sources.end()) continue;
        spec.curves.push_back({static_cast<int>(i), {}});
        for (size_t p = 0; p < runs_[i].train.size(); ++p)
          if (std::isfinite(found->second.loss[p]))
            spec.curves.back().points.emplace_back(double(runs_[i].train[p].tokens), found->second.loss[p]);
      }
      chart(spec);
    }
  }

  void differences() {
    if (runs_.size() < 2) return;
    out_ += "<h2>Differences from " + run_name(0) + "</h2>";
    ChartSpec spec{"Training loss minus that of A", "tokens", "", {}, true, true};
    for (size_t i = 1; i < runs_.size(); ++i) {
      spec.curves.push_back({static_cast<int>(i), {}});
      const std::vector<TrainPoint>&a = runs_[0].train, &b = runs_[i].train;
      for (size_t j = 0, k = 0; j < a.size() && k < b.size();) {
        if (a[j].step == b[k].step) spec.curves.back().points.emplace_back(double(b[k].tokens), b[k].loss - a[j].loss);
        const bool step_a = a[j].step <= b[k].step, step_b = b[k].step <= a[j].step;
        j += step_a, k += step_b;
      }
    }
    chart(spec);
    out_ += "<div class=scroll><table><tr><th>run<th>training loss<th>steps<th>held-out loss<th>tokens/s<th>data</tr>";
    bool any_unpaired = false;
    for (size_t i = 1; i < runs_.size(); ++i) {
      const LossDifference d = loss_difference(runs_[0], runs_[i]);
      any_unpaired |= !d.same_data;
      const double held_out = runs_[i].final_held_out_loss() - runs_[0].final_held_out_loss();
      const double speed = runs_[i].median_tokens_per_s() / runs_[0].median_tokens_per_s();
      out_ += "<tr>" + cell(run_name(i)) + cell(d.difference.count > 0 ? to_text(d.difference, 4) : "–") +
              cell(d.difference.count > 0 ? fmt::format("{}–{}", d.first_step, d.last_step) : "–") +
              cell(number(held_out, "{:+.4f}")) + cell(number(speed, "{:.2f}×")) +
              cell(d.same_data ? "same order" : "another order") + "</tr>";
    }
    out_ +=
        "</table></div><p class=soft>Training loss: mean difference over the last quarter of the common steps, paired "
        "step by "
        "step, with its 95 % interval over 8 blocks of steps (Student's t). The interval covers the noise of the "
        "batches, "
        "not that of another seed.</p>";
    if (any_unpaired)
      out_ +=
          "<p class=alarm>Runs that saw other data, or the data in another order, are not comparable step by step: "
          "they "
          "have no interval.</p>";
  }

  void config_differences() {
    if (runs_.size() < 2 || !runs_[0].config) return;
    std::vector<std::string> keys;
    std::vector<std::map<std::string, std::string>> values(runs_.size());
    for (size_t i = 1; i < runs_.size(); ++i) {
      if (!runs_[i].config) continue;
      for (const ConfigDifference& d : compare_configs(*runs_[0].config, *runs_[i].config)) {
        if (d.key == "run.dir") continue;
        if (std::find(keys.begin(), keys.end(), d.key) == keys.end()) keys.push_back(d.key);
        values[0][d.key] = d.before;
        values[i][d.key] = d.after;
      }
    }
    out_ += "<h2>Config</h2>";
    if (keys.empty()) {
      out_ += "<p>No key differs but run.dir.</p>";
      return;
    }
    out_ += "<div class=scroll><table><tr><th>key";
    for (size_t i = 0; i < runs_.size(); ++i) out_ += "<th>" + style_letter(static_cast<int>(i));
    out_ += "</tr>";
    for (const std::string& key : keys) {
      out_ += "<tr>" + cell("<code>" + escape_markup(key) + "</code>");
      for (size_t i = 0; i < runs_.size(); ++i) {
        const auto found = values[i].find(key);
        out_ +=
            cell(found != values[i].end() ? (i > 0 ? "<b>" : "") + escape_markup(found->second) + (i > 0 ? "</b>" : "")
                                          : (runs_[i].config ? "=" : "?"));
      }
      out_ += "</tr>";
    }
    out_ += "</table></div><p class=soft>= : as in A.</p>";
  }

  void throughput() {
    out_ += "<h2>Throughput and training</h2>";
    chart({"Tokens per second", "tokens", "", train_curves(nullptr, [](const TrainPoint& p) { return p.tokens_per_s; }),
           true});
    chart({"Gradient norm before clipping", "tokens", "",
           train_curves(nullptr, [](const TrainPoint& p) { return p.grad_norm; }), true});
    chart({"Learning rate", "tokens", "", train_curves(nullptr, [](const TrainPoint& p) { return p.lr; })});
  }

  void expert_loads(const RunData& run, int style) {
    if (run.loads.empty()) return;
    if (style == 0) {
      out_ +=
          "<h2>Expert load</h2><p class=soft>One picture per layer: time to the right, experts downwards, load against "
          "the "
          "layer's mean. Even load is one shade; stripes are experts that stay full or empty.</p><p class=scale>";
      for (const HeatColor& c : heat_scale())
        out_ += fmt::format("<span><i style=\"background:#{:06x}\"></i>{}</span>", c.rgb, c.label);
      out_ += "</p>";
    }
    out_ += "<h3>" + run_name(static_cast<size_t>(style)) + "</h3>";
    const ExpertLoads& last = run.loads.back();
    std::string dead;
    for (size_t layer = 0; layer < last.layers.size(); ++layer) {
      const auto empty = std::count(last.counts[layer].begin(), last.counts[layer].end(), 0);
      if (empty > 0)
        dead += fmt::format("{}{} of {} in {}", dead.empty() ? "" : ", ", empty, last.counts[layer].size(),
                            last.layers[layer]);
    }
    if (!dead.empty())
      out_ += fmt::format("<p class=alarm>Experts without a token at step {}: {}.</p>", last.step, escape_markup(dead));
    const auto per_layer = std::max<int>(64, map_pixels_ / static_cast<int>(last.layers.size()));
    const int width = std::clamp(per_layer / 24, 8, 100), height = std::clamp(per_layer / width, 8, 64);
    out_ += "<div class=maps>";
    for (size_t layer = 0; layer < last.layers.size(); ++layer) {
      const HeatMap map = load_heat_map(run.loads, layer, width, height);
      out_ += fmt::format(
          "<figure><img alt=\"expert load of {0}\" src=\"data:image/png;base64,{1}\"><figcaption>{0}"
          "</figcaption></figure>",
          escape_markup(last.layers[layer]), base64(map.png));
    }
    out_ += fmt::format("</div><p class=soft>Steps {} to {}, {} experts a layer.</p>", run.loads.front().step,
                        last.step, last.counts.front().size());
  }

  void events() {
    constexpr size_t kMostEvents = 100;  // of a run
    out_ += "<h2>Events</h2><div class=scroll><table class=text><tr><th>run<th>step<th>time (UTC)<th>event<th></tr>";
    size_t rows = 0;
    for (size_t i = 0; i < runs_.size(); ++i) {
      const auto& all = runs_[i].events;
      for (size_t e = all.size() > kMostEvents ? all.size() - kMostEvents : 0; e < all.size(); ++e, ++rows)
        out_ += "<tr>" + cell(style_letter(static_cast<int>(i))) + cell(std::to_string(all[e].step)) +
                cell(escape_markup(all[e].time)) + cell(escape_markup(all[e].event)) +
                cell(escape_markup(all[e].text)) + "</tr>";
    }
    out_ += "</table></div>";
    if (rows == 0) out_ += "<p class=none>none recorded</p>";
  }

  const std::vector<RunData>& runs_;
  int most_points_, map_pixels_;
  std::string out_;
};

std::string csv_number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }

// RFC 4180
std::string csv_text(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == text.npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

}  // namespace

std::string report_as_html(const std::vector<RunData>& runs, const std::string& title,
                           const std::string& introduction) {
  check<ConfigError>(!runs.empty(), "a report needs at least one run");
  const int share = static_cast<int>(runs.size());
  int points = std::clamp(4000 / share, 60, 700), pixels = std::clamp(400'000 / share, 4000, 200'000);
  for (;;) {
    std::string html = Report(runs, points, pixels).html(title, introduction);
    if (html.size() < kMostReportBytes || points <= 8) return html;
    points /= 2, pixels /= 2;
  }
}

std::string report_as_csv(const std::vector<RunData>& runs) {
  const std::set<std::string> sets = names_of(runs, &RunData::held_out), sources = names_of(runs, &RunData::sources);
  std::string out = "run,step,tokens,seconds,train_loss,grad_norm,lr,tokens_per_s";
  for (const std::string& set : sets) out += "," + csv_text("val_" + set);
  for (const std::string& source : sources) out += "," + csv_text("data_" + source + "_loss");
  out += "\n";
  for (const RunData& run : runs) {
    std::map<int64_t, std::map<std::string, double>> held_out;  // by step
    for (const auto& [set, points] : run.held_out)
      for (const HeldOutPoint& p : points) held_out[p.step][set] = p.loss;
    for (size_t i = 0; i < run.train.size(); ++i) {
      const TrainPoint& p = run.train[i];
      out += fmt::format("{},{},{},{},{},{},{},{}", csv_text(run.name), p.step, p.tokens, csv_number(p.seconds),
                         csv_number(p.loss), csv_number(p.grad_norm), csv_number(p.lr), csv_number(p.tokens_per_s));
      for (const std::string& set : sets) {
        const auto at = held_out.find(p.step);
        const bool known = at != held_out.end() && at->second.contains(set);
        out += ',';
        if (known) out += csv_number(at->second.at(set));
      }
      for (const std::string& source : sources) {
        const auto found = run.sources.find(source);
        out += ',';
        if (found != run.sources.end()) out += csv_number(found->second.loss[i]);
      }
      out += "\n";
    }
  }
  return out;
}

}  // namespace braid
