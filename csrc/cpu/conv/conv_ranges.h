// How the work of an evaluation is shared out to threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/conv/conv_kernels.h"

namespace contnet_fast {

// All images, the units of the batch spread over threads. Where these are too few, a unit is made by several threads,
// each for some of its output channels, which changes no bit.
struct WholeBatch {
  int64_t images;
  int units;
  int padded;
  int slices;  // of the channels
  WholeBatch(int64_t images, const Geometry& g)
      : images(images), units(g.units), padded(g.padded), slices(slices_of(images, g)) {}

  template <typename F>
  void over_units(const F& f) const {
    const int64_t all = images * units;
    at::parallel_for(0, all * slices, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to;) {
        const int64_t slice = i / all, b = i % all / units, first = (slice * images + b) * units;
        const int64_t end = std::min(to, first + units);
        f(b, static_cast<int>(i - first), static_cast<int>(end - first), channels(static_cast<int>(slice)));
        i = end;
      }
    });
  }
  template <typename F>
  void over_images(const F& f) const {
    at::parallel_for(0, images, 1, [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) f(b);
    });
  }

 private:
  Channels channels(int slice) const {
    if (slices == 1) return {0, padded};
    const int blocks = padded / 16;
    return {slice * blocks / slices * 16, (slice + 1) * blocks / slices * 16};
  }

  // Each slice transforms the unit's input anew, which is worth it where threads would be idle.
  static int slices_of(int64_t images, const Geometry& g) {
    const int64_t items = images * g.units, threads = at::get_num_threads();
    int best = 1;
    double least = 0.0;
    for (int slices = 1; items > 0 && slices * kSlice <= g.padded; ++slices) {
      const int64_t rounds = (items * slices + threads - 1) / threads;
      const double time = double(rounds) * (1.0 / slices + kTransform);
      if (slices == 1 || time < least) best = slices, least = time;
    }
    return best;
  }
  static constexpr int kSlice = 32;           // channels, at least
  static constexpr double kTransform = 0.15;  // of the time of a unit
};

// One image, by the calling thread.
struct OneImage {
  int64_t image;
  int units;
  int padded;
  template <typename F>
  void over_units(const F& f) const {
    f(image, 0, units, Channels{0, padded});
  }
  template <typename F>
  void over_images(const F& f) const {
    f(image);
  }
};

}  // namespace contnet_fast
