// Moments of norms from the sums of units, and the gradient through a norm.
#pragma once

#include <vector>

#include "cpu/conv/conv_kernels.h"

namespace contnet_fast {

// Means, and sums of squared distances from them, of `n` values of a channel in images [from, to), from those of units
// (`partial`, as Sums::moments has them), merged in a fixed order. `over_group` adds up channels that share a norm.
template <typename T, typename F>
void merge_units(const Geometry& g, const T* partial, int64_t from, int64_t to, double n, std::vector<double>& mean,
                 std::vector<double>& square, const F& over_group) {
  const int padded = g.padded;
  auto over_partial = [&](auto&& f) {
    for (int64_t b = from; b < to; ++b)
      for (int u = 0; u < g.units; ++u) f(partial + (b * g.units + u) * 2 * padded, double(g.rows(u)) * g.width);
  };
  over_partial([&](const T* p, double pixels) {
    const double share = pixels / n;
    for (int c = 0; c < padded; ++c) mean[c] += share * p[c];
  });
  over_group(mean);
  over_partial([&](const T* p, double pixels) {
    for (int c = 0; c < padded; ++c) {
      const double apart = p[c] - mean[c];
      square[c] += p[padded + c] + pixels * apart * apart;
    }
  });
  over_group(square);
}

// d = rstd (gamma g - <gamma g> - x <gamma g x>) with x = (z - mean) rstd, <> the mean over what shares moments, as
// c0 g + c1 z + c2 per channel.
template <typename T>
struct Through {
  T *c0, *c1, *c2;
  void set(int c, double gamma, double plain, double along, double mean, double rstd) const {
    c0[c] = static_cast<T>(gamma * rstd);
    c1[c] = static_cast<T>(-rstd * rstd * along);
    c2[c] = static_cast<T>(-rstd * plain + rstd * rstd * along * mean);
  }
};

}  // namespace contnet_fast
