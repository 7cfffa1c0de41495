#include "trainer/device/implementations.h"

#include <algorithm>

#include "kernels/cases/operator_case.h"
#include "trainer/device/operator_sizes.h"

namespace braid {

std::vector<OperatorImplementation> operator_implementations(Context& ctx, const RunConfig& config) {
  const cases::Sizes sizes = operator_sizes(config);
  std::vector<OperatorImplementation> list;
  for (const cases::OperatorCase& c : cases::operator_cases())
    if (c.implementation && cases::is_used(c, sizes)) list.push_back({c.name, c.implementation(ctx, sizes)});
  return list;
}

void check_nothing_slow(const std::vector<OperatorImplementation>& implementations, const RunConfig& config) {
  if (config.precision != Precision::kBf16) return;
  std::string reasons, names;
  for (const OperatorImplementation& i : implementations) {
    const bool allowed =
        std::find(config.allow_slow.begin(), config.allow_slow.end(), i.name) != config.allow_slow.end();
    if (i.how.why_slow.empty() || allowed) continue;
    reasons += concat(reasons.empty() ? "" : "; ", i.name, " (", i.how.why_slow, ")");
    names += (names.empty() ? "" : ", ") + i.name;
  }
  check<ConfigError>(reasons.empty(), "this run would be slower than the GPU allows, in ", reasons,
                     "; change the model or the build, or allow it: allow_slow: [", names, "]");
}

}  // namespace braid
