#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/segments.h"
#include "trainer/config/config.h"

namespace braid {

// Where an operator is tried: on the CPU in fp64, which is what it is held to, or on the device in the dtypes of
// training. A check makes its tensors through a side and is run once on each; both sides then hold the same numbers,
// those that the device's dtypes can hold. Tensors live as long as the side.
class CheckSide {
 public:
  enum class Storage { kActivation, kWide };  // wide_dtype of the activation
  static constexpr Storage kActivation = Storage::kActivation, kWide = Storage::kWide;

  // The device's side, or the CPU's, which computes in fp64 with numbers of the device's dtypes.
  static CheckSide of_device(Context& ctx, DType activation) { return CheckSide(ctx, activation, false); }
  static CheckSide of_reference(Context& cpu, DType activation) { return CheckSide(cpu, activation, true); }

  Context& ctx() { return ctx_; }
  bool on_cuda() const { return ctx_.on_cuda(); }
  DType activation() const { return activation_; }  // the device's

  // Random numbers in host memory, fp64; every call has a stream of its own, the same on both sides.
  Tensor normal(Shape shape, double stddev = 1, double mean = 0);
  Tensor uniform(Shape shape, double low, double high);

  Tensor input(Tensor host_f64, Storage storage);
  Tensor input(const Tensor& host);  // as it is: integers, fp64
  template <class T>
  Tensor input(const std::vector<T>& values, Shape shape) {
    return input(Tensor::of(const_cast<T*>(values.data()), shape));
  }
  Segments input(Segments segments);
  Tensor unwritten(Shape shape, Storage storage) { return unwritten(shape, stored(storage)); }  // NaN
  Tensor unwritten(Shape shape, DType dtype);
  Tensor filled(Shape shape, Storage storage, double value);

  // What an operator has written.
  void result(const char* op, const char* tensor_name, const Tensor& tensor);

  struct Result {
    std::string op, tensor_name;
    bool exact;  // integers
    std::vector<double> values;
  };
  const std::vector<Result>& results() const { return results_; }

 private:
  CheckSide(Context& ctx, DType activation, bool is_reference)
      : ctx_(ctx), activation_(activation), is_reference_(is_reference) {}
  DType device_dtype(Storage storage) const { return storage == kActivation ? activation_ : wide_dtype(activation_); }
  DType stored(Storage storage) const { return is_reference_ ? DType::kF64 : device_dtype(storage); }
  Tensor take(Device device, Shape shape, DType dtype);

  Context& ctx_;
  DType activation_;
  bool is_reference_;
  uint64_t next_stream_ = 0;
  std::vector<std::shared_ptr<std::byte>> memory_;
  std::vector<Result> results_;
};

// Operators that are tried together, on small hard inputs.
struct OperatorCheck {
  std::string name;
  std::string variant;  // what decides which kernels run: "bf16, heads of 128"
  std::function<void(CheckSide&)> run;
};

// Of every operator that a run with this config uses, in its sizes but with few tokens, few experts' weights and a
// small vocabulary, so that the kernels of training are picked. Documents of one token, slow and strong decay, experts
// without rows, equal router logits and tokens without a target are among the inputs.
std::vector<OperatorCheck> operator_checks(const RunConfig& config);

// How far a result may be from the reference: relative root-mean-square error, and for no element more than
// kWorstElement times that many RMS of the tensor, or a few units of its own last place.
double allowed_relative_rms(DType activation);

// Runs the check on both sides and compares. Errors: EnvironmentError that names the operator, the variant, the tensor
// and both numbers; what the operator itself throws, with its name in front.
void run_check(const OperatorCheck& check, Context& device, DType activation);

// All of operator_checks on this GPU. Called by every rank, each for its own; all throw the error of the lowest rank
// whose GPU is wrong. Returns how many checks were run; none on a CPU, which is what a GPU is held to.
int64_t self_check(Context& ctx, Communicator& world, const RunConfig& config);

}  // namespace braid
