#include "kernels/load_balance.h"

#include <numeric>

namespace braid::cpu {

void add_counts(Context&, Tensor totals, const Tensor& counts) {
  const int64_t E = counts.dim(1);
  for (int64_t i = 0; i < counts.numel(); ++i) totals.data<int64_t>()[i % E] += counts.data<int64_t>()[i];
}

void load_balance(Context&, Tensor d_prob, Tensor sums, const Tensor& counts, const RouterOutputs& router,
                  double loss_weight, double per_token) {
  const int64_t B = d_prob.dim(0), E = d_prob.dim(1);
  // Adds to what is there one by one, so that micro-batches give the bits of one batch.
  double loss = sums.data<double>()[0], z_loss = sums.data<double>()[1];
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* load = counts.data<int64_t>() + (counts.dim(0) == 1 ? 0 : b * E);
    const int64_t total = std::accumulate(load, load + E, int64_t{0});
    for (int64_t e = 0; e < E; ++e) {
      const double f = total > 0 ? double(load[e]) / double(total) : 1.0 / double(E);
      const double weight = double(E) * f * per_token;
      d_prob.data<double>()[b * E + e] = loss_weight * weight;
      loss += weight * router.prob_sum.data<double>()[b * E + e];
    }
    z_loss += per_token * router.z_sum.data<double>()[b];
  }
  sums.data<double>()[0] = loss;
  sums.data<double>()[1] = z_loss;
}

}  // namespace braid::cpu
