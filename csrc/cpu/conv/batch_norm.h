// A batch norm of one map: its moments, its affine function, and the gradient through it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/conv/conv_moments.h"

namespace contnet_fast {

// Of [padded] values each. Null: gamma and beta are 1 and 0.
template <typename T>
struct NormTensors {
  const T *gamma, *beta;
  const T *mean, *var;  // running statistics
};

// Moments are [mean, 1 / std][padded].
template <typename T>
void running_moments(const NormTensors<T>& norm, int padded, double eps, T* moments) {
  for (int c = 0; c < padded; ++c) {
    moments[c] = norm.mean[c];
    moments[padded + c] = T(1) / std::sqrt(norm.var[c] + static_cast<T>(eps));
  }
}

// Those of a batch, and its statistics [mean, unbiased variance][padded], from the sums of units (Sums::moments).
template <typename T>
void batch_moments(const Geometry& g, int64_t batch, const T* partial, double eps, T* moments, T* statistics) {
  const double n = static_cast<double>(batch) * g.height * g.width;
  std::vector<double> means(g.padded), squares(g.padded);
  merge_units(g, partial, 0, batch, n, means, squares, [](std::vector<double>&) {});
  for (int c = 0; c < g.padded; ++c) {
    statistics[c] = moments[c] = static_cast<T>(means[c]);
    moments[g.padded + c] = static_cast<T>(1.0 / std::sqrt(squares[c] / n + eps));
    statistics[g.padded + c] = static_cast<T>(squares[c] / std::max(n - 1.0, 1.0));
  }
}

// norm(z) = scale z + shift
template <typename T>
void norm_affine(const NormTensors<T>& norm, int padded, const T* moments, T* scale, T* shift) {
  for (int c = 0; c < padded; ++c) {
    scale[c] = (norm.gamma ? norm.gamma[c] : T(1)) * moments[padded + c];
    shift[c] = (norm.beta ? norm.beta[c] : T(0)) - moments[c] * scale[c];
  }
}

// The gradient through the norm, and those of its parameters (null where none is wanted), from the sums of `units` of
// the gradient of its result (Sums::gradient). `values`: of a channel in the moments; 0: running ones.
template <typename T>
void through_batch_norm(const NormTensors<T>& norm, int padded, const T* moments, const T* partial, int64_t units,
                        double values, const Through<T>& to, T* gamma_grad, T* beta_grad) {
  std::vector<double> sum(padded), with(padded);  // of the gradient, and by the normalised input
  for (int64_t i = 0; i < units; ++i, partial += 2 * padded)
    for (int c = 0; c < padded; ++c) sum[c] += partial[c], with[c] += partial[padded + c];
  const double share = values > 0.0 ? 1.0 / values : 0.0;
  for (int c = 0; c < padded; ++c) {
    with[c] *= moments[padded + c];
    if (gamma_grad) gamma_grad[c] = static_cast<T>(with[c]);
    if (beta_grad) beta_grad[c] = static_cast<T>(sum[c]);
    const double gamma = norm.gamma ? norm.gamma[c] : T(1);
    to.set(c, gamma, share * gamma * sum[c], share * gamma * with[c], moments[c], moments[padded + c]);
  }
}

}  // namespace contnet_fast
