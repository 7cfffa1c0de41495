#include <algorithm>
#include <cmath>

#include "kernels/cpu/dispatch.h"
#include "kernels/gated_delta_rule.h"

namespace braid::cpu {
namespace {

// What one value head reads at one token.
template <class T>
struct Step {
  const T *q, *k, *v;
  T beta, decay;
};

// One thread and plain loops: an oracle has to be easy to trust.
template <class T>
struct Recurrence {
  explicit Recurrence(const DeltaRuleInputs& in)
      : in(in), Hk(in.q.dim(1)), Dk(in.q.dim(2)), Hv(in.v.dim(1)), Dv(in.v.dim(2)), s(1 / std::sqrt(T(Dk))) {}

  int64_t key_row(int64_t t, int64_t j) const { return (t * Hk + j / (Hv / Hk)) * Dk; }
  int64_t value_row(int64_t t, int64_t j) const { return (t * Hv + j) * Dv; }
  Step<T> step(int64_t t, int64_t j) const {
    return {in.q.data<T>() + key_row(t, j), in.k.data<T>() + key_row(t, j), in.v.data<T>() + value_row(t, j),
            in.beta.data<T>()[t * Hv + j], std::exp(in.log_decay.data<T>()[t * Hv + j])};
  }

  // error = v - S_hat^T k;  next = S_hat + beta k error^T. `next` may be the same memory as `state`.
  void advance(T* next, T* error, const T* state, const Step<T>& x) const {
    std::copy_n(x.v, Dv, error);
    for (int64_t a = 0; a < Dk; ++a)
      for (int64_t b = 0; b < Dv; ++b) error[b] -= x.decay * state[a * Dv + b] * x.k[a];
    for (int64_t a = 0; a < Dk; ++a)
      for (int64_t b = 0; b < Dv; ++b) next[a * Dv + b] = x.decay * state[a * Dv + b] + x.beta * x.k[a] * error[b];
  }

  const DeltaRuleInputs& in;
  int64_t Hk, Dk, Hv, Dv;
  T s;
};

}  // namespace

void gated_delta_rule_recurrent_forward(Context& ctx, Tensor o, const DeltaRuleInputs& in, const Segments& segments) {
  dispatch_float("q", in.q, [&]<class T> {
    const Recurrence<T> rule(in);
    const int64_t Dk = rule.Dk, Dv = rule.Dv;
    Scratch scratch(ctx);
    T *state = scratch.array<T>(Dk * Dv), *error = scratch.array<T>(Dv);
    for (int64_t d = 0; d < segments.num_documents(); ++d) {
      for (int64_t j = 0; j < rule.Hv; ++j) {
        std::fill_n(state, Dk * Dv, T(0));
        for (int64_t t = segments.begin(d); t < segments.end(d); ++t) {
          const Step<T> x = rule.step(t, j);
          rule.advance(state, error, state, x);
          T* o_row = o.data<T>() + rule.value_row(t, j);
          std::fill_n(o_row, Dv, T(0));
          for (int64_t a = 0; a < Dk; ++a)
            for (int64_t b = 0; b < Dv; ++b) o_row[b] += rule.s * state[a * Dv + b] * x.q[a];
        }
      }
    }
  });
}

void gated_delta_rule_recurrent_backward(Context& ctx, DeltaRuleInputs d_in, const Tensor& d_o,
                                         const DeltaRuleInputs& in, const Segments& segments) {
  dispatch_float("q", in.q, [&]<class T> {
    const Recurrence<T> rule(in);
    const int64_t Dk = rule.Dk, Dv = rule.Dv, size = Dk * Dv;
    std::fill_n(d_in.q.data<T>(), d_in.q.numel(), T(0));
    std::fill_n(d_in.k.data<T>(), d_in.k.numel(), T(0));
    for (int64_t d = 0; d < segments.num_documents(); ++d) {
      const int64_t begin = segments.begin(d), length = segments.length(d);
      Scratch scratch(ctx);
      T *states = scratch.array<T>((length + 1) * size), *errors = scratch.array<T>(length * Dv);  // of every token
      T *d_state = scratch.array<T>(size), *d_delta = scratch.array<T>(Dv);
      for (int64_t j = 0; j < rule.Hv; ++j) {
        std::fill_n(states, size, T(0));
        for (int64_t i = 0; i < length; ++i)
          rule.advance(states + (i + 1) * size, errors + i * Dv, states + i * size, rule.step(begin + i, j));

        std::fill_n(d_state, size, T(0));
        for (int64_t i = length - 1; i >= 0; --i) {
          const int64_t t = begin + i;
          const Step<T> x = rule.step(t, j);
          const T *before = states + i * size, *after = before + size, *error = errors + i * Dv;
          const T* d_o_row = d_o.data<T>() + rule.value_row(t, j);
          T *d_q = d_in.q.data<T>() + rule.key_row(t, j), *d_k = d_in.k.data<T>() + rule.key_row(t, j);
          T* d_v = d_in.v.data<T>() + rule.value_row(t, j);
          std::fill_n(d_delta, Dv, T(0));
          for (int64_t a = 0; a < Dk; ++a) {
            for (int64_t b = 0; b < Dv; ++b) {
              d_q[a] += rule.s * after[a * Dv + b] * d_o_row[b];
              d_state[a * Dv + b] += rule.s * x.q[a] * d_o_row[b];
              d_delta[b] += d_state[a * Dv + b] * x.k[a];
            }
          }
          T d_beta = 0, d_log_decay = 0;
          for (int64_t b = 0; b < Dv; ++b) {
            d_v[b] = x.beta * d_delta[b];
            d_beta += d_delta[b] * error[b];
          }
          for (int64_t a = 0; a < Dk; ++a) {
            for (int64_t b = 0; b < Dv; ++b) {
              const T decayed = x.decay * before[a * Dv + b];
              d_k[a] += d_state[a * Dv + b] * x.beta * error[b] - decayed * d_v[b];
              const T d_decayed = d_state[a * Dv + b] - x.k[a] * d_v[b];
              d_log_decay += d_decayed * decayed;
              d_state[a * Dv + b] = x.decay * d_decayed;
            }
          }
          d_in.beta.data<T>()[t * rule.Hv + j] = d_beta;
          d_in.log_decay.data<T>()[t * rule.Hv + j] = d_log_decay;
        }
      }
    }
  });
}

}  // namespace braid::cpu
