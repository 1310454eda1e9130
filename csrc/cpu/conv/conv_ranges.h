// How the work of an evaluation is shared out to threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/conv/conv_kernels.h"
#include "cpu/conv/conv_theta.h"

namespace contnet_fast {

// Units [from, to) of an image, or the only one of each of several, and of their results some channels.
struct Share {
  int64_t image;
  int images;
  int from, to;
  Channels out;
};

constexpr int kTogether = 8;  // images, at most

// Units [first, last), counted through the batch: of one image, or images of one unit each.
inline Share share_of(const Geometry& g, int64_t first, int64_t last) {
  const int64_t b = first / g.units;
  if (g.units == 1) return {b, static_cast<int>(last - first), 0, 1, {0, g.padded}};
  return {b, 1, static_cast<int>(first - b * g.units), static_cast<int>(last - b * g.units), {0, g.padded}};
}

// How many images may be convolved together: where the weights of a convolution fill a cache, reading them for the few
// tiles of a small map takes longer than multiplying.
inline int most_together(int64_t images, const Geometry& g) {
  const int tiles = std::max(g.tiles_x * g.group, 1);
  if (g.direct || g.units > 1 || g.padded <= 64 || g.tiles_x > 48 / g.tile) return 1;
  return static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(kManyTiles / tiles, images), 1, kTogether));
}

// How a batch is shared out: images that are convolved together, and slices of their output channels.
struct Split {
  int together, slices;
};

// That with the least time by count: products of a unit take as long as reading the weights at least, and each slice
// transforms the input for itself.
inline Split split_of(int64_t images, const Geometry& g, int64_t threads) {
  constexpr int kSlice = 32;           // channels, at least
  constexpr double kTransform = 0.15;  // of the time of products
  const int tiles = g.tiles_x * g.group, least_tiles = g.padded > 64 ? 24 : 0;
  Split best{1, 1};
  double least = 0.0;
  for (int together = 1; together <= most_together(images, g); ++together)
    for (int slices = 1; slices == 1 || slices * kSlice <= g.padded; ++slices) {
      const int64_t items = (images + together - 1) / together * g.units * slices;
      const int64_t rounds = (items + threads - 1) / threads;
      const int n = together * tiles;
      const double time = double(rounds) * (double(std::max(n, least_tiles)) / slices + kTransform * n);
      if (together * slices == 1 || time < least) best = {together, slices}, least = time;
    }
  return best;
}

// All images, the units of the batch spread over threads. Where these are too few, a unit is made by several threads,
// each for some of its output channels. Neither that nor images that are convolved together change a bit.
class WholeBatch {
 public:
  WholeBatch(int64_t images, const Geometry& g)
      : g_(g), images_(images), split_(split_of(images, g, at::get_num_threads())) {}
  bool together() const { return split_.together > 1; }

  template <typename F>
  void over_units(const F& f) const {
    const int64_t items = (images_ + split_.together - 1) / split_.together * g_.units;
    at::parallel_for(0, items * split_.slices, 1, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to;) {
        const int64_t slice = i / items, group = i % items / g_.units, first = slice * items + group * g_.units;
        const int64_t end = std::min(to, first + g_.units);
        const int64_t b = group * split_.together, images = std::min<int64_t>(split_.together, images_ - b);
        f(Share{b, static_cast<int>(images), static_cast<int>(i - first), static_cast<int>(end - first),
                channels(static_cast<int>(slice))});
        i = end;
      }
    });
  }
  template <typename F>
  void over_images(const F& f) const {
    at::parallel_for(0, images_, 1, [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) f(b);
    });
  }

 private:
  Channels channels(int slice) const {
    if (split_.slices == 1) return {0, g_.padded};
    const int blocks = g_.padded / 16;
    return {slice * blocks / split_.slices * 16, (slice + 1) * blocks / split_.slices * 16};
  }

  const Geometry& g_;
  int64_t images_;
  Split split_;
};

// One image, by the calling thread.
struct OneImage {
  int64_t image;
  const Geometry& g;
  template <typename F>
  void over_units(const F& f) const {
    f(Share{image, 1, 0, g.units, {0, g.padded}});
  }
  template <typename F>
  void over_images(const F& f) const {
    f(image);
  }
};

// The convolutions of a share; fill(image, its job) says all but which channels are wanted.
template <typename T, typename F>
void convolve(const ConvKernels<T>& kernels, const Geometry& g, const Share& share, const F& fill) {
  ConvJob<T> jobs[kTogether];
  for (int m = 0; m < share.images; ++m) {
    jobs[m].out = share.out;
    fill(share.image + m, jobs[m]);
  }
  T* const scratch = thread_scratch<T>(kernels.scratch(g, share.images));
  if (share.images > 1) return kernels.conv_images(g, jobs, share.images, scratch);
  kernels.conv(g, jobs[0], share.from, share.to, scratch);
}

}  // namespace contnet_fast
