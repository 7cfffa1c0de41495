#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/core/segments.h"
#include "kernels/core/turn_times.h"
#include "trainer/bench/operator_bench.h"

namespace braid {

// Where a family of operators is timed: makes their tensors, owns the memory, and measures.
//
//   const Workbench::Tensors x = bench.normals({N, C}, bench.activation());
//   Tensor y = bench.empty({N, C}, bench.activation());
//   bench.measure("operator_forward", "32768 x 2048", {.bytes = 4.0 * N * C},
//                 [&](int turn) { operator_forward(bench.ctx(), y, x[turn]); });
//
// Operators get bf16 on a GPU and fp32 on the CPU, where only tests come here.
class Workbench {
 public:
  // Tensors alike, enough of them that what one turn reads has left the cache before it is read again.
  class Tensors {
   public:
    const Tensor& operator[](int turn) const { return copies_[turn % copies_.size()]; }
    Tensor& operator[](int turn) { return copies_[turn % copies_.size()]; }

   private:
    friend class Workbench;
    std::vector<Tensor> copies_;
  };

  using Body = std::function<void(int turn)>;
  using Report = std::function<void(const std::string& op, const std::string& shape, const Work& work, double ms)>;

  // Scratch memory is this bench's own; the device's stream is that of `ctx`.
  Workbench(const Context& ctx, Communicator& world, const OperatorBenchOptions& options, Report report);

  Context& ctx() { return ctx_; }
  Communicator& world() { return world_; }
  const OperatorBenchOptions& options() const { return options_; }
  const ModelConfig& model() const { return options_.model; }
  DType activation() const { return ctx_.on_cuda() ? DType::kBF16 : DType::kF32; }
  double activation_bytes() const { return double(size_of(activation())); }

  int64_t num_tokens() const { return options_.num_tokens; }                        // N
  int64_t row_tokens() const;                                                       // T
  Segments whole_rows() const;                                                      // B x T
  std::string whole_rows_name() const;                                              // "8 x 4096"
  std::string tokens_by(int64_t width) const;                                       // "32768 x 2048"
  static Segments equal_documents(int64_t num_documents, int64_t document_tokens);  // in one row
  static Segments mixed_documents(int64_t num_rows, int64_t row_tokens);            // about 1000 tokens in the mean
  Segments uploaded(Segments segments);                                             // with their tables on a GPU

  Tensor empty(Shape shape, DType dtype);  // not initialised
  Tensor zeros(Shape shape, DType dtype);
  // Normal numbers: zeros would flatter every operator that multiplies.
  Tensor normal(Shape shape, DType dtype, double stddev = 1, double mean = 0);
  Tensor uniform(Shape shape, DType dtype, double low, double high);
  Tensors normals(Shape shape, DType dtype, double stddev = 1);
  Tensors uniforms(Shape shape, DType dtype, double low, double high);
  template <class T>
  Tensor filled(const std::vector<T>& values, Shape shape) {
    Tensor t = empty(shape, dtype_of<T>());
    copy(ctx_, t, Tensor::of(const_cast<T*>(values.data()), shape));
    return t;
  }

  void release();  // frees all tensors

  // Reports the median time of `body`, which may enqueue several kernels, if `op` was chosen.
  void measure(const std::string& op, const std::string& shape, const Work& work, const Body& body,
               Launch launch = Launch::kGraph);
  // The median itself, of the slowest rank.
  double median_ms(const Body& body, Launch launch);

 private:
  template <class Make>
  Tensors copies(const Make& make);
  double of_slowest_rank(double ms);

  Context ctx_;
  Communicator& world_;
  const OperatorBenchOptions& options_;
  Report report_;
  std::vector<std::shared_ptr<std::byte>> memory_;
  Tensor head_start_;
  uint64_t seed_ = 0;
};

// The operators of one header of the catalogue; families/ has a file per layer.
struct OperatorFamily {
  const char* name;              // of the header
  std::vector<const char*> ops;  // everything that `bench` measures
  void (*bench)(Workbench&);
  bool needs_ranks = false;
};
const std::vector<OperatorFamily>& operator_families();
bool is_chosen(const OperatorFamily& family, const std::string& op, const std::vector<std::string>& chosen);

void bench_matmul(Workbench&);
void bench_copy(Workbench&);
void bench_random(Workbench&);
void bench_embedding(Workbench&);
void bench_rms_norm(Workbench&);
void bench_mtp_inputs(Workbench&);
void bench_gdn_inputs(Workbench&);
void bench_gated_delta_rule(Workbench&);
void bench_gated_rms_norm(Workbench&);
void bench_attention_inputs(Workbench&);
void bench_attention(Workbench&);
void bench_router(Workbench&);
void bench_load_balance(Workbench&);
void bench_expert_rows(Workbench&);
void bench_experts(Workbench&);
void bench_swiglu(Workbench&);
void bench_lm_head_loss(Workbench&);
void bench_adamw(Workbench&);
void bench_sum_squares(Workbench&);
void bench_communicator(Workbench&);

}  // namespace braid
