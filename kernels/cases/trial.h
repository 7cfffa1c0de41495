#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/core/segments.h"
#include "kernels/core/tensor.h"

namespace braid::cases {

// What a tensor of a case is stored in: the activation dtype, the wide dtype beside it, bf16 where the device has it
// (else wide), or always this dtype.
enum class Storage { kActivation, kWide, kBf16, kF64, kI64, kI32 };

// How far a result may be from the reference: relative root-mean-square error, and for no element more than `worst`
// times the RMS of the expected tensor plus so much of itself. `absolute` is for what is 0 but for rounding.
struct Tolerance {
  double relative_rms, worst, of_element = 0, absolute = 0;
};
// Of one result: on a GPU with fp32 and with bf16 activations, and of the CPU in fp32, all against fp64. A bf16 result
// carries its own rounding, up to 2^-8 of itself, and that of its factors.
struct Closeness {
  Tolerance f32 = {5e-6, 1e-4};
  Tolerance bf16 = {6e-3, 6e-2, 0x1p-7};
  Tolerance cpu = {2e-6, 1e-4};
  bool rounded_once = false;  // what is expected is the reference, rounded to the dtype of the result
};
inline constexpr Tolerance kEqual = {0, 0};
inline constexpr Closeness kUsual = {};
inline constexpr Closeness kWideSum = {.bf16 = kUsual.f32};  // fp32 arithmetic on what both sides read
inline constexpr Closeness kExact = {kEqual, kEqual, kEqual};
inline constexpr Closeness kRoundedOnce = {kEqual, kEqual, kEqual, true};

// What a tensor holds: random numbers or a constant, then edited as fp64 in host memory.
struct Values {
  enum class Kind { kNormal, kUniform, kConstant } kind;
  double a = 0, b = 0;  // mean and standard deviation; bounds; the constant
  std::function<void(Tensor f64)> edit = {};
};
inline Values normal(double stddev = 1, double mean = 0) { return {Values::Kind::kNormal, mean, stddev}; }
inline Values uniform(double low, double high) { return {Values::Kind::kUniform, low, high}; }
inline Values constant(double value) { return {Values::Kind::kConstant, value}; }
inline Values edited(Values values, std::function<void(Tensor f64)> edit) {
  values.edit = std::move(edit);
  return values;
}

// The least that an operator must do, and which code does it where there are several.
struct Work {
  double bytes = 0;  // read and written, every input and output once; 0: the step is not timed
  double flop = 0;   // floating-point operations of products
  std::string by = {};
};

// A case on one device in one dtype: its tensors, and the calls that read and write them. A variant of a case declares
// both through a trial; who wants to compare, differentiate, repeat or time does so with any trial of any case.
//
//   const Var x = t.input("x", {N, C}, normal()), y = t.output("y", {N, C});
//   t.forward("relu_forward", {y}, [=](Context& ctx) { relu_forward(ctx, y, x); }, {.bytes = 2.0 * y.bytes()});
//   const Var d_y = t.input("d_y", {N, C}, normal()), d_x = t.output("d_x", {N, C});
//   t.backward("relu_backward", {d_x}, [=](Context& ctx) { relu_backward(ctx, d_x, d_y, x); });
//   t.loss(y, d_y);
//   t.gradient(x, d_x);
class Trial {
 public:
  struct Var : Tensor {  // a tensor of the trial; copy it freely
    int index = -1;
  };

  // In these dtypes on the device of ctx; all trials of a variant hold the same numbers.
  static Trial of(Context& ctx, DType activation) { return Trial(&ctx, activation, Kind::kExact); }
  // What that one is held to: in fp64 on the CPU, with the numbers that the dtypes on `device` can hold.
  static Trial reference_of(Context& cpu, DType activation, Device device) {
    Trial trial(&cpu, activation, Kind::kReference);
    trial.dtypes_of_ = device;
    return trial;
  }
  // To time, or to repeat: random numbers come from the device; what is written does not start from known numbers.
  static Trial timed(Context& ctx, DType activation) { return Trial(&ctx, activation, Kind::kTimed); }
  // Declares, without memory: for names, sizes and work.
  static Trial listed(Context& ctx, DType activation) { return Trial(&ctx, activation, Kind::kListed); }

  // ---- For cases. Order matters: it gives every tensor its random numbers.
  Context& ctx() const { return *ctx_; }
  bool on_cuda() const { return ctx_->on_cuda(); }
  DType activation() const { return activation_; }
  // Rows that a GPU gets beyond those in use, as under a bound; a CPU gets none.
  int64_t spare_rows(int64_t rows) const { return on_cuda() ? rows : 0; }

  Var input(const char* name, Shape shape, const Values& values, Storage storage = Storage::kActivation);
  // Integers and fp64 as they are.
  Var input(const char* name, Shape shape, const std::vector<int64_t>& values);
  Var input(const char* name, Shape shape, const std::vector<int32_t>& values);
  Var input(const char* name, Shape shape, const std::vector<double>& values);
  Segments segments(Segments segments);
  // Overwritten whole, but for spare rows, which stay as they are. Starts as NaN.
  Var output(const char* name, Shape shape, Storage storage = Storage::kActivation, const Closeness& close = kUsual);
  // Added to; `start` is about as large as what is added.
  Var sum(const char* name, Shape shape, Storage storage = Storage::kWide, const Closeness& close = kUsual,
          const Values& start = normal());
  // The low bits of the masters of weights: two bytes each beside bf16 ones, else not defined. Read, then overwritten;
  // starts as 0. Not compared: master weights are.
  Var low_bits(const char* name, const Var& weight);
  // Bytes that an operator keeps for itself; start as 0, and a step may put them so. Not compared, as they are nobody's
  // result.
  Var kept_bytes(const char* name, Shape shape);
  // Overwritten where the operator writes, and left as it is elsewhere.
  Var part(const char* name, Shape shape, Storage storage = Storage::kActivation, const Closeness& close = kUsual);
  // Read, then overwritten. Starts with values, or with the numbers of another tensor.
  Var in_out(const char* name, Shape shape, const Values& values, Storage storage = Storage::kActivation,
             const Closeness& close = kUsual);
  Var in_out(const char* name, const Var& source, const Closeness& close = kUsual);

  using Body = std::function<void(Context&)>;
  void forward(const char* op, std::vector<Var> writes, Body body, Work work = {});
  void backward(const char* op, std::vector<Var> writes, Body body, Work work = {});
  // The loss is the sum of all y * d_y; d_y as it is before backward.
  void loss(const Var& y, const Var& d_y) { losses_.push_back({y, d_y}); }
  // After backward, d_x is what backward finds (or, of a sum, adds) as the loss's gradient by x.
  void gradient(const Var& x, const Var& d_x) { gradients_.push_back({x, d_x}); }
  // Relative, against central differences in fp64; 1e-9 unless said otherwise.
  void gradient_error(double relative) { gradient_error_ = relative; }
  // Backward forms anew what forward rounded: the reference goes on with results of its own.
  void reference_keeps_its_own() { takes_over_ = false; }
  // Two ways to the same result.
  void same_bits(const Var& a, const Var& b) { same_.push_back({a, b}); }

  // ---- For those who try cases.
  enum class Role { kInput, kOutput, kSum, kPart, kInOut };
  struct Slot {
    const char* name;
    Role role;
    Closeness close;
    Tensor tensor;
    Tensor start;  // what a written tensor holds before a step
  };
  struct Step {
    const char* op;
    std::vector<Var> writes;
    Body body;
    Work work;
    bool is_forward;
  };
  struct Pair {
    Var first, second;
  };
  const std::vector<Step>& steps() const { return steps_; }
  const std::vector<Pair>& losses() const { return losses_; }
  const std::vector<Pair>& gradients() const { return gradients_; }
  const std::vector<Pair>& same() const { return same_; }
  double gradient_error() const { return gradient_error_; }
  bool takes_over() const { return takes_over_; }
  const Slot& slot(const Var& var) const { return slots_[static_cast<size_t>(var.index)]; }
  const Slot& slot(const std::string& name) const;  // errors: ShapeError if there is none
  int64_t bytes() const;                            // of all tensors

  // What a step writes is as before it, or sums and parts are 0.
  enum class Starts { kValues, kZero };
  void reset(const Step& step, Starts starts = Starts::kValues);
  void run(const Step& step, Starts starts = Starts::kValues);  // reset, then the step
  void run(Starts starts = Starts::kValues);                    // all steps
  std::vector<Tensor> written() const;                          // by any step
  Tensor on_host(const Tensor& tensor) const;                   // as stored; waits for the device
  Tensor on_host_f64(const Tensor& tensor) const;               // floats widened

 private:
  enum class Kind { kExact, kReference, kTimed, kListed };
  Trial(Context* ctx, DType activation, Kind kind)
      : ctx_(ctx), activation_(activation), dtypes_of_(ctx->device()), kind_(kind) {}
  DType device_dtype(Storage storage) const;
  DType stored(Storage storage) const;
  Tensor take(Device device, Shape shape, DType dtype) const;
  Tensor to_device(const Tensor& host) const;
  Tensor made(Shape shape, const Values& values, Storage storage);
  Var add(const char* name, Role role, const Closeness& close, Tensor tensor, Tensor start);
  Var add_written(const char* name, Role role, const Closeness& close, const Tensor& start);
  Var add_raw(const char* name, const Tensor& host);

  Context* ctx_;
  DType activation_;
  Device dtypes_of_;  // device
  Kind kind_;
  uint64_t next_stream_ = 0;
  double gradient_error_ = 1e-9;
  bool takes_over_ = true;
  mutable std::vector<std::shared_ptr<std::byte>> memory_;
  std::vector<Slot> slots_;
  std::vector<Step> steps_;
  std::vector<Pair> losses_, gradients_, same_;
};
using Var = Trial::Var;

// Runs step `index` on both from the same numbers and says in words how what it wrote differs, a sentence per tensor
// ("y differs from the CPU by 0.5 relative RMS (allowed 0.0002)"); nothing if it does not. `allowed` gives the
// tolerance of a slot with so many elements. Then the reference takes over what the other one wrote, rounding and all,
// so that the next step starts from the same numbers, too.   Errors: what the operator throws.
using Allowed = std::function<Tolerance(const Trial::Slot& slot, int64_t count)>;
std::vector<std::string> compare_step(Trial& reference, Trial& tried, size_t index, const Allowed& allowed);

}  // namespace braid::cases
