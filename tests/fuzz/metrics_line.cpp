// metrics.jsonl, as braid plot and report read it.
#include <cmath>
#include <stdexcept>

#include "kernels/core/error.h"
#include "tests/fuzz/fuzz_target.h"
#include "trainer/metrics/loss_curve.h"

namespace braid::fuzz {

std::vector<std::string> seeds() {
  return {
      "{\"step\": 1, \"train/loss\": 5.5, \"val/a/loss\": null}\n{\"step\": 2, \"train/loss\": 5.25e0, "
      "\"perf/step_ms\": 3}\n",
      "{\"step\": 3, \"override/optimizer.lr\": 0.001}\n{\"step\": 3, \"val/a/loss\": 4.5, \"val/a/ppl\": "
      "90.01}\n{\"step\": 4, \"tr"};
}

void take(std::string_view bytes) {
  const std::string path = as_file("metrics.jsonl", bytes);
  field_names(path);
  for (const CurveSeries& series : read_curves(path, {"train/loss", "val/a/loss"}))
    for (const auto& [step, value] : series.points)
      if (!std::isfinite(step)) throw std::logic_error("a step that is none");
}

}  // namespace braid::fuzz
