#include "trainer/device/self_check.h"

#include "parallel/rank_text.h"
#include "trainer/device/operator_sizes.h"

namespace braid {
namespace {

constexpr const char* kGoOn = "; --skip-selfcheck goes on all the same";
constexpr double kWorstElement = 30;
constexpr double kOwnRounding = 4;  // units in the last place of an element

}  // namespace

std::vector<OperatorCheck> operator_checks(const RunConfig& config) {
  const cases::Sizes sizes = operator_sizes(config);
  std::vector<OperatorCheck> checks;
  for (const cases::OperatorCase& c : cases::operator_cases())
    for (const cases::Variant& variant : c.checked(sizes))
      checks.push_back({c.name, {concat(name_of_enum(config.precision), ", ", variant.label), variant.declare}});
  return checks;
}

double allowed_relative_rms(DType activation) {
  // The tests hold bf16 to 6e-3 and fp32 to 5e-6, but fp32 to 1e-4 where strong decays add up.
  return activation == DType::kBF16 ? 2e-2 : 2e-4;
}

void run_check(const OperatorCheck& check, Context& device, DType activation) {
  const std::string of_variant = " (" + check.variant.label + "): ";
  const bool is_bf16 = activation == DType::kBF16;
  const double allowed = allowed_relative_rms(activation), last_place = is_bf16 ? 0x1p-8 : 0x1p-23;
  const cases::Allowed tolerance = [&](const cases::Trial::Slot& slot, int64_t) {
    const double absolute = (is_bf16 ? slot.close.bf16 : slot.close.f32).absolute;
    return cases::Tolerance{allowed, kWorstElement * allowed, kOwnRounding * last_place, absolute};
  };
  Context cpu = Context::cpu();
  cases::Trial reference = cases::Trial::reference_of(cpu, activation, device.device());
  cases::Trial tried = cases::Trial::of(device, activation);
  std::string op = check.name, what;
  ExitCode code = ExitCode::kEnvironment;
  try {
    check.variant.declare(reference);
    check.variant.declare(tried);
    for (size_t i = 0; i < tried.steps().size() && what.empty(); ++i)
      if (const auto differences = compare_step(reference, tried, i, tolerance); !differences.empty())
        op = tried.steps()[i].op, what = differences.front();
    device.synchronize();
  } catch (const Error& e) {
    code = e.code();
    what = e.what();
  }
  if (!what.empty()) throw Error(code, concat("self-check: ", op, of_variant, what, kGoOn));
}

int64_t self_check(Context& ctx, Communicator& world, const RunConfig& config) {
  if (!ctx.on_cuda()) return 0;
  const std::vector<OperatorCheck> checks = operator_checks(config);
  all_or_none(ctx, world, [&] {
    for (const OperatorCheck& check : checks) run_check(check, ctx, dtype_of_precision(config.precision));
    return std::string();
  });
  return static_cast<int64_t>(checks.size());
}

}  // namespace braid
