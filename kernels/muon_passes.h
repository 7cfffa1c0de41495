#pragma once

#include "kernels/muon.h"

// What of Muon is no product: passes over elements, one implementation per device. muon.cpp puts them together and has
// checked the shapes.
namespace braid {

struct NewtonSchulz {
  static constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315, kEps = 1e-7;
};

// g = scale * gradient;  momentum <- mu momentum + g;  direction = g + mu momentum
//   momentum, gradient (G, P, C), of which the rows;  direction (M, C)
using MuonDirection = void(Context& ctx, Tensor direction, Tensor momentum, const Tensor& gradient, MuonRows rows,
                           double mu, double scale);
// x /= sqrt(sum) + kEps;   sum (1) F64
using MuonNormalize = void(Context& ctx, Tensor x, const Tensor& sum);
// square = kA + kB gram + kC square, kA on the diagonal;   (m, m)
using MuonPolynomial = void(Context& ctx, Tensor square, const Tensor& gram);
// master <- master - rate * direction - decay * master;   weight, low (G, P, C), of which the rows
using MuonApply = void(Context& ctx, Tensor weight, Tensor low, const Tensor& direction, MuonRows rows, double rate,
                       double decay);

namespace cpu {
MuonDirection muon_direction;
MuonNormalize muon_normalize;
MuonPolynomial muon_polynomial;
MuonApply muon_apply;
}  // namespace cpu
namespace cuda {
MuonDirection muon_direction;
MuonNormalize muon_normalize;
MuonPolynomial muon_polynomial;
MuonApply muon_apply;
}  // namespace cuda

}  // namespace braid
