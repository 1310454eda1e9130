// How a block of a whole solve lays out maps and weights.
#pragma once

#include "cuda/conv/plan/budgets.h"

namespace contnet_fast::cuda {

// What depends on the padded number of channels and the bytes of an operand. Lengths are in values. `wide`: a warp has
// twice the pixels, so that its products read a quarter less.
struct ConvLayout {
  int channels, bytes;
  bool wide = false;

  constexpr int n() const { return channels == 16 ? 2 : 4; }
  constexpr int m() const { return channels == 16 ? 8 : wide ? 4 : 2; }
  constexpr int values() const { return m() * n() * 4; }          // a lane
  constexpr int warps_n() const { return channels / (8 * n()); }  // warps beside one another along channels
  // from a pixel to the next, and from a row of weights to the next: eight of them begin in different banks
  constexpr int pixel() const { return channels + 16 / bytes; }
  constexpr int row() const { return channels + 8; }
  constexpr int taps() const {  // that arrive together
    const int tap = channels * row() * bytes;
    return 9 * tap <= kTapBytes ? 9 : 3 * tap <= kTapBytes ? 3 : 1;
  }
  constexpr int depth() const {  // input channels that arrive together: all of them, or of one tap as many as fit
    int depth = channels;
    while (depth * row() * bytes > kDepthBytes) depth /= 2;
    return depth;
  }
  constexpr int chunks() const { return 9 / taps() * (channels / depth()); }
  constexpr int chunk_bytes() const { return taps() * depth() * row() * bytes; }
};

}  // namespace contnet_fast::cuda
