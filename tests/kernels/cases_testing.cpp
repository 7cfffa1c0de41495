#include "tests/kernels/cases_testing.h"

#include <algorithm>
#include <cstdlib>

#include "tests/testing.h"

namespace braid::testing {

cases::Variants hard_variants(const cases::OperatorCase& c, int64_t most_bytes) {
  if (const char* limit = std::getenv("BRAID_MOST_CASE_BYTES"))
    most_bytes = std::min<int64_t>(most_bytes, std::atoll(limit));
  Context cpu = Context::cpu();
  cases::Variants variants;
  for (const cases::Variant& variant : c.hard()) {
    cases::Trial listed = cases::Trial::listed(cpu, DType::kF32);
    variant.declare(listed);
    if (listed.bytes() <= most_bytes) variants.push_back(variant);
  }
  EXPECT_FALSE(variants.empty()) << c.name;
  return variants;
}

void expect_agreement(const cases::Variant& variant, cases::Trial& reference, cases::Trial& tried,
                      const cases::Allowed& allowed) {
  variant.declare(reference);
  variant.declare(tried);
  for (size_t i = 0; i < tried.steps().size(); ++i)
    for (const std::string& what : compare_step(reference, tried, i, allowed))
      ADD_FAILURE() << tried.steps()[i].op << ": " << what;
  for (const auto& [a, b] : tried.same())
    expect_same_bits(tried.on_host(tried.slot(a).tensor), tried.on_host(tried.slot(b).tensor), tried.slot(a).name);
}

void expect_counted_scratch(cases::Trial& trial, const std::function<Context()>& fresh) {
  for (const cases::Trial::Step& step : trial.steps()) {
    trial.run(step);  // also gives the tensors of later steps their numbers
    std::vector<Tensor> before;
    for (const cases::Trial::Var& var : step.writes) before.push_back(copy_of(trial.on_host(trial.slot(var).tensor)));
    Context counted = trial.ctx().counter();
    step.body(counted);
    for (size_t i = 0; i < before.size(); ++i)
      expect_same_bits(trial.on_host(trial.slot(step.writes[i]).tensor), before[i], step.op);
    Context measured = fresh();
    step.body(measured);
    measured.synchronize();
    EXPECT_EQ(counted.scratch_peak_bytes(), measured.scratch_peak_bytes()) << step.op;
  }
}

}  // namespace braid::testing
