#pragma once

#include <string>
#include <vector>

#include "kernels/cases/operator_case.h"
#include "parallel/communicator.h"
#include "trainer/config/config.h"

namespace braid {

// An operator that is tried, on small hard inputs.
struct OperatorCheck {
  std::string name;
  cases::Variant variant;  // labelled with what decides which kernels run: "bf16, heads of 128"
};

// Of every operator that a run with this config uses, in its sizes but with few tokens, few experts' weights and a
// small vocabulary, so that the kernels of training are picked. Documents of one token, slow and strong decay, experts
// without rows, equal router logits and tokens without a target are among the inputs: kernels/cases/ has them.
std::vector<OperatorCheck> operator_checks(const RunConfig& config);

// How far a result may be from the reference: relative root-mean-square error, and for no element more than
// kWorstElement times that many RMS of the tensor, or a few units of its own last place.
double allowed_relative_rms(DType activation);

// Runs every step on the CPU in fp64 and on the device, both from the same numbers, and compares. Errors:
// EnvironmentError that names the operator, the variant, the tensor and both numbers; what the operator itself throws,
// with its name in front.
void run_check(const OperatorCheck& check, Context& device, DType activation);

// All of operator_checks on this GPU. Called by every rank, each for its own; all throw the error of the lowest rank
// whose GPU is wrong. Returns how many checks were run; none on a CPU, which is what a GPU is held to.
int64_t self_check(Context& ctx, Communicator& world, const RunConfig& config);

}  // namespace braid
