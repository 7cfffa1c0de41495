#include "trainer/parity/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace braid {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kListedNames = 10;

// "a, b and 3 more"
std::string name_list(const std::vector<std::string>& names) {
  const size_t shown = std::min(names.size(), kListedNames);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + shown, ", "));
  if (shown < names.size()) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

const char* mark(bool passed) { return passed ? "" : "  FAILED"; }

// An infinite bound asks for nothing.
std::string bound_text(double bound, const char* format) {
  return std::isinf(bound) ? "-" : fmt::format(fmt::runtime(format), bound);
}

void add_tensor_table(const std::vector<TensorVerdict>& tensors, std::string& out) {
  if (tensors.empty()) return;
  size_t width = 6;
  for (const TensorVerdict& t : tensors) width = std::max(width, t.name.size());
  out += fmt::format("{:<{}}  {:>12}  {:>9}  {:>12}  {:>12}  worst element: got, expected\n", "tensor", width,
                     "relative RMS", "bound", "cosine", "bound");
  for (const TensorVerdict& t : tensors)
    out += fmt::format("{:<{}}  {:>12.3e}  {:>9}  {:>12.9f}  {:>12}  [{}]: {:.6g}, {:.6g}{}\n", t.name, width,
                       t.relative_rms, bound_text(t.bound.relative_rms, "{:.2e}"), t.cosine,
                       bound_text(t.bound.cosine, "{:.9f}"), fmt::join(t.worst_index, ", "), t.worst_got,
                       t.worst_expected, mark(t.passed));
}

void add_curve(const CurveVerdict& c, std::string& out) {
  if (c.expected.empty()) return;
  const std::string step =
      c.expected.size() > 1 ? fmt::format(" at step {} of {}", c.worst + 1, c.expected.size()) : "";
  out += fmt::format("{}: relative difference {:.3e}{}, bound {:.2e}; got {:.10g}, expected {:.10g}{}\n", c.name,
                     c.largest_difference, step, c.bound, c.got[c.worst], c.expected[c.worst], mark(c.passed));
}

Json json_of(const TensorVerdict& t) {
  return {{"name", t.name},
          {"relative_rms", t.relative_rms},
          {"worst_index", t.worst_index},
          {"worst_got", t.worst_got},
          {"worst_expected", t.worst_expected},
          {"cosine", t.cosine},
          {"bound", t.bound.relative_rms},
          {"cosine_bound", t.bound.cosine},
          {"passed", t.passed}};
}

Json json_of(const CurveVerdict& c) {
  return {{"got", c.got},     {"expected", c.expected}, {"relative_difference", c.largest_difference},
          {"worst", c.worst}, {"bound", c.bound},       {"passed", c.passed}};
}

}  // namespace

std::string to_text(const ParityReport& report, const ParityOptions& options) {
  std::string out = fmt::format("model {}\nreference {}, {} on {}\n\n", options.model, options.reference,
                                name_of_enum(options.precision), name_of_enum(options.device));
  add_tensor_table(report.tensors, out);
  for (const CurveVerdict& c : report.curves) add_curve(c, out);
  if (report.mtp_positions > 0)
    out += fmt::format("mtp_logits: {} of {} positions compared, those whose next token lies in the same document\n",
                       report.mtp_compared, report.mtp_positions);
  if (!report.not_compared.empty())
    out += fmt::format("not compared: {} gradients that the reference does not hold: {}\n", report.not_compared.size(),
                       name_list(report.not_compared));

  std::vector<std::string> failed;
  for (const TensorVerdict& t : report.tensors)
    if (!t.passed) failed.push_back(t.name);
  for (const CurveVerdict& c : report.curves)
    if (!c.passed) failed.push_back(c.name);
  const size_t count = report.tensors.size() + report.curves.size();
  if (report.passed()) return out + fmt::format("parity: passed ({} tensors)\n", count);
  return out + fmt::format("parity: FAILED: {} of {} tensors: {}\n", failed.size(), count, name_list(failed));
}

std::string to_json(const ParityReport& report, const ParityOptions& options) {
  Json json = {{"passed", report.passed()},
               {"model", options.model},
               {"reference", options.reference},
               {"precision", name_of_enum(options.precision)},
               {"device", name_of_enum(options.device)},
               {"tensors", Json::array()},
               {"loss", nullptr}};
  for (const TensorVerdict& t : report.tensors) json["tensors"].push_back(json_of(t));
  for (const CurveVerdict& c : report.curves) json[c.name] = json_of(c);
  if (report.mtp_positions > 0)
    json["mtp_positions"] = {{"compared", report.mtp_compared}, {"all", report.mtp_positions}};
  json["not_compared"] = {{"count", report.not_compared.size()}, {"names", report.not_compared}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace braid
