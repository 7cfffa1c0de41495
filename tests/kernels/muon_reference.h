#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace braid::testing {

using Matrix = std::vector<std::vector<double>>;

inline Matrix transposed(const Matrix& a) {
  Matrix t(a[0].size(), std::vector<double>(a.size()));
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[0].size(); ++j) t[j][i] = a[i][j];
  return t;
}
// scale a + b c
inline Matrix product(const Matrix& b, const Matrix& c, double scale = 0, const Matrix& a = {}) {
  Matrix out(b.size(), std::vector<double>(c[0].size()));
  for (size_t i = 0; i < b.size(); ++i)
    for (size_t j = 0; j < c[0].size(); ++j) {
      if (scale != 0) out[i][j] = scale * a[i][j];
      for (size_t k = 0; k < c.size(); ++k) out[i][j] += b[i][k] * c[k][j];
    }
  return out;
}

// Muon as its authors and Moonlight define it, in double and without a thought for speed: the momentum is changed,
// the new weight returned.
struct MuonReference {
  double lr, mu, rms = 0.2, decay = 0, scale = 1;

  static Matrix newton_schulz(Matrix x) {
    double norm = 0;
    for (const auto& row : x)
      for (double value : row) norm += value * value;
    for (auto& row : x)
      for (double& value : row) value /= std::sqrt(norm) + 1e-7;
    for (int step = 0; step < 5; ++step) {
      const Matrix s = product(x, transposed(x));
      Matrix b = product(s, s);
      for (size_t i = 0; i < b.size(); ++i)
        for (size_t j = 0; j < b.size(); ++j) b[i][j] = -4.7750 * s[i][j] + 2.0315 * b[i][j];
      x = product(b, x, 3.4445, x);
    }
    return x;
  }
  Matrix update(const Matrix& weight, Matrix& momentum, const Matrix& gradient) const {
    Matrix direction = gradient, next = weight;
    for (size_t i = 0; i < weight.size(); ++i)
      for (size_t j = 0; j < weight[0].size(); ++j) {
        momentum[i][j] = mu * momentum[i][j] + scale * gradient[i][j];
        direction[i][j] = scale * gradient[i][j] + mu * momentum[i][j];
      }
    direction = newton_schulz(direction);
    const double size = rms * std::sqrt(static_cast<double>(std::max(weight.size(), weight[0].size())));
    for (size_t i = 0; i < weight.size(); ++i)
      for (size_t j = 0; j < weight[0].size(); ++j)
        next[i][j] = weight[i][j] * (1 - lr * decay) - lr * size * direction[i][j];
    return next;
  }
};

}  // namespace braid::testing
