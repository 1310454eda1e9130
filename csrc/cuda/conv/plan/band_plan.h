// A 3x3 convolution of bands of rows at level stage: what a block takes.
#pragma once

#include "cuda/conv/conv_launch.h"
#include "cuda/conv/plan/budgets.h"
#include "runtime/export.h"

namespace contnet_fast::cuda {

// What a block takes, and where its shared memory lies (bytes).
struct BandPlan {
  int32_t m, n, warps_m, warps_n;      // tiles of 16 pixels and 8 channels of a warp; warps
  int32_t height, width, channels;     // of an image
  int32_t rows, columns;               // of a band
  int32_t down, across, bands;         // bands of an image, and of the batch
  int32_t each, blocks, blocks_n;      // bands of a block; blocks along bands and along output channels
  int32_t depth, piece, taps, pieces;  // input channels, padded; of a piece; taps of a piece
  int32_t line, pixel, row;            // values from a line, a pixel, a row of weights to the next
  int32_t weights, piece_bytes, end;   // the tile and the sums begin at 0
  int32_t threads() const { return 32 * warps_m * warps_n; }
};

// Bytes of shared memory behind `end` for the vectors of the kernel that takes the plan.
inline int64_t stage_vectors(const BandPlan& b) { return int64_t{8} * b.depth; }

// The plan of a convolution, or (`back`) of its gradient by the input, in shared memory of at most p.shared_limit
// bytes, `rest` of which the kernel wants behind `end`; bands 0: none.
CONTNET_FAST_API BandPlan plan_band(const ConvProblem& p, bool back, int64_t rest);

inline BandPlan plan_convolution(const ConvProblem& p) { return plan_band(p, false, stage_vector_bytes(p.channels)); }
inline BandPlan plan_data_gradient(const ConvProblem& p) { return plan_band(p, true, kGradientBytes); }

// Why level stage cannot run a problem on any chip, or null.
CONTNET_FAST_API const char* stage_refusal(const ConvProblem& p);

}  // namespace contnet_fast::cuda
