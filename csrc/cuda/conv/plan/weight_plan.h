// Gradients by the weights of convolutions at level stage: how blocks share pixels and channels.
#pragma once

#include "cuda/conv/conv_launch.h"
#include "cuda/conv/plan/budgets.h"
#include "runtime/export.h"

namespace contnet_fast::cuda {

struct WeightTile {  // of an operand of I x O channels
  int i, o;
  constexpr int taps() const { return i == 16 ? 9 : 3; }                  // of a warp
  constexpr int m() const { return i == 16 ? 1 : 2; }                     // tiles of 16 input channels of a warp
  constexpr int n() const { return i == 16 ? 2 : 4; }                     // tiles of 8 output channels
  constexpr int shares() const { return i == 16 ? 6 : i == 32 ? 2 : 1; }  // warps that share the pixels of a tile
  constexpr int warps() const { return 9 / taps() * (i / (16 * m())) * (o / (8 * n())) * shares(); }
  constexpr int pixel() const { return i + 8; }  // values from a pixel to the next: eight begin in different banks
  constexpr int row() const { return o + 8; }
};

struct WeightPlan {
  WeightTile tile;
  int32_t rows, columns, tiles_x, tiles_y;    // of a tile in pixels; tiles of an image
  int32_t depth;                              // pixels of a tile as the product takes them: whole sixteens
  int32_t units, splits;                      // tiles of the batch; blocks that share them
  int32_t blocks_i, blocks_o;                 // of channels
  int32_t biases, places, operand, gradient;  // bytes before an array of shared memory; the first are the norms
  int64_t shared;                             // bytes
};

CONTNET_FAST_API WeightPlan plan_weights(const ConvProblem& p);

}  // namespace contnet_fast::cuda
