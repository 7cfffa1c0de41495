#pragma once

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/experts.h"
#include "kernels/router.h"
#include "model/config.h"
#include "model/layer_pass.h"
#include "model/parameters.h"
#include "parallel/expert_exchange.h"

namespace braid {

struct SharedExpertParams {
  Tensor gate_proj, up_proj;  // (Fs, C)
  Tensor down_proj;           // (C, Fs)
  Tensor gate;                // (1, C)
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const int64_t C = c.hidden_size, Fs = c.shared_expert_intermediate_size;
    tensor("shared_expert.gate_proj.weight", gate_proj, {Fs, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    tensor("shared_expert.up_proj.weight", up_proj, {Fs, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
    tensor("shared_expert.down_proj.weight", down_proj, {C, Fs}, Owner::kEveryRank, Init::kOutputProjection,
           Decay::kYes);
    tensor("shared_expert_gate.weight", gate, {1, C}, Owner::kEveryRank, Init::kNormal, Decay::kYes);
  }
};

struct MoeParams {        // weights; the same struct holds gradients
  Tensor router;          // (E, C)
  ExpertWeights experts;  // gate_up (El, 2F, C), down (El, C, F): only the El experts that live on this rank
  SharedExpertParams shared;
  template <class Visit>
  void visit(const ModelConfig& c, Visit&& tensor) {
    const int64_t E = c.num_experts, C = c.hidden_size, F = c.moe_intermediate_size;
    tensor("gate.weight", router, {E, C}, Owner::kEveryRank, Init::kEqualNormRows, Decay::kYes);
    tensor("experts.gate_up_proj", experts.gate_up, {E, 2 * F, C}, Owner::kExpertRank, Init::kNormal, Decay::kYes,
           {1, {F, F}});
    tensor("experts.down_proj", experts.down, {E, C, F}, Owner::kExpertRank, Init::kOutputProjection, Decay::kYes);
    shared.visit(c, tensor);
  }
};

struct MoeSaved {
  RouterOutputs router;
  Tensor router_entropy;  // (1) F64  sum over the valid tokens; a number for metrics
  ExpertRoute route;
  // Of all rows, or of the last round of several: backward then makes each round's again.
  Tensor rows;                // (Rmax, C)   received rows, the first R are used
  Tensor row_gate;            // (Rmax)
  Tensor gate_up_out;         // (Rmax, 2F)
  Tensor shared_a, shared_b;  // (N, Fs)     before SwiGLU
  Tensor shared_gate;         // (N, 1)      logit
};

// Mixture of experts:
//   y = sum_k gate_k expert_k(x) + sigmoid(x . shared_gate) shared(x)
// Source: Qwen3NextSparseMoeBlock in transformers.
class MoeLayer {
 public:
  MoeLayer(const ModelConfig& c, ExpertExchange& exchange);
  static double multiply_adds(const ModelConfig& c);         // of the forward pass of one token
  static double output_multiply_adds(const ModelConfig& c);  // of them, of what is never made again
  void plan(SavedPlan& saved, MoeSaved& s, int64_t num_rows, int64_t N, DType dtype) const;
  //   x, y (N, C)
  void forward(Context& ctx, Tensor y, const Tensor& x, const MoeParams& p, MoeSaved& s, const LayerPass& pass) const;
  //   d_x overwritten, g +=
  void backward(Context& ctx, Tensor d_x, MoeParams& g, const Tensor& d_y, const Tensor& x, const MoeParams& p,
                const MoeSaved& s, const LayerPass& pass) const;

 private:
  // Whether rows need not travel to be made again.
  bool rows_are_near() const { return !exchange_.moves_rows(); }
  void remake(Context& ctx, Remake what, const Tensor& x, const MoeParams& p, const MoeSaved& s,
              const LayerPass& pass) const;
  template <class Body>
  void for_each_round(Context& ctx, const ExpertRoute& route, Body&& body) const;

  int64_t C_, E_, K_, F_, Fs_;
  GateNorm norm_;
  ExpertExchange& exchange_;
};

}  // namespace braid
