// Sums of weight gradients over a batch, in an order that does not depend on the number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/conv/conv_ranges.h"
#include "runtime/pool.h"

namespace contnet_fast {

// Gradients of the transformed weights and biases of some convolutions, summed apart for parts of the batch that depend
// on its shape only.
template <typename T>
class WeightSums {
 public:
  WeightSums(int64_t images, const Geometry& g, int convs) : g_(g), units_(images * g.units), convs_(convs) {
    // Merging a part costs as much as a few tiles, so a part has many, as long as there are parts for some threads.
    // A tile of 4x4 pixels counts twice: it has 2.25 times the products.
    const int64_t tiles = int64_t(g_.tiles_x) * g_.group * (g_.tile / 2), total = tiles * units_;
    const int64_t wanted = std::clamp<int64_t>(total / 512, std::clamp<int64_t>(total / 64, 2, 4), 64);
    const int64_t bytes = part_size() * static_cast<int64_t>(sizeof(T));
    const int64_t most = std::max<int64_t>((int64_t(256) << 20) / bytes, 4);
    part_ = std::max<int64_t>((units_ + std::min(wanted, most) - 1) / std::min(wanted, most), 1);
    parts_ = std::max<int64_t>((units_ + part_ - 1) / part_, 1);
    together_ = most_together(part_, g_);
    memory_.resize(parts_ * part_size());
    std::fill_n(memory_.data(), parts_ * part_size(), T(0));
  }

  T* weights(int64_t part, int conv) { return memory_.data() + part * part_size() + conv * conv_size(); }
  T* bias(int64_t part, int conv) { return weights(part, conv) + g_.weights(); }

  // f(part, its share) for every unit, each part by one thread
  template <typename F>
  void over_parts(const F& f) const {
    at::parallel_for(0, parts_, 1, [&](int64_t from, int64_t to) {
      for (int64_t part = from; part < to; ++part)
        for (int64_t i = part * part_; i < std::min((part + 1) * part_, units_);) {
          const int64_t b = i / g_.units, images = g_.units == 1 ? together_ : 1;
          const int64_t end = std::min({(part + 1) * part_, units_, (b + images) * g_.units});
          f(part, share_of(g_, i, end));
          i = end;
        }
    });
  }

  // merge all parts into the first, in order
  void merge() {
    at::parallel_for(0, part_size(), 1024, [&](int64_t from, int64_t to) {
      for (int64_t part = 1; part < parts_; ++part) {
        T *sum = memory_.data(), *p = memory_.data() + part * part_size();
        for (int64_t i = from; i < to; ++i) sum[i] += p[i], p[i] = T(0);
      }
    });
  }
  void clear_merged() { std::fill_n(memory_.data(), part_size(), T(0)); }

 private:
  int64_t conv_size() const { return g_.weights() + g_.padded; }
  int64_t part_size() const { return convs_ * conv_size(); }
  const Geometry& g_;
  int64_t units_, convs_, part_, parts_;
  int64_t together_ = 1;  // images
  Buffer<T> memory_;
};

}  // namespace contnet_fast
