// What kernels allow themselves of a block, by name and reason.
#pragma once

#include <cstdint>

#include "cuda/lib/types.h"
#include "runtime/limits.h"

namespace contnet_fast::cuda {

// ---- whole solves
constexpr int kMostThreads = 256;  // of a block, so that a thread may have 255 registers
constexpr int kMostCluster = limits::MOST_CLUSTER;
constexpr int kLeastWide = 64;          // channels from which warps may have twice the pixels
constexpr int kTapBytes = 28 * 1024;    // of weights that arrive together, as whole taps: two buffers of them
constexpr int kDepthBytes = 36 * 1024;  // of one tap, as some of its input channels
// of an evaluation: two biases, scale and shift of two norms, skip scalar times eps
constexpr int kVectors = 7;
constexpr int kMoments = 4;                                // of known norms: mean and variance of each
constexpr int kSampleVectors = 4, kWideSampleVectors = 5;  // of norms within an image, beside one a row of warps
// of a stage's channels, backward: two biases; weight, bias, mean, 1/deviation of two norms; skip
constexpr int kStageRows = 11;

// ---- bands of level stage
constexpr int kBandThreads = 256;            // of a block, at most
constexpr int kBandWeightBytes = 24 * 1024;  // of weights that arrive together: two buffers, and two blocks an SM
constexpr int kGradientVectors = 5;          // of an output channel: mean, deviation, scale, shift, factor
constexpr int kBandOutputs = 128;            // output channels of a block, at most
constexpr int64_t kGradientBytes = 4 * kGradientVectors * kBandOutputs;

// of a convolution's own vectors behind the band: scale and shift, padded for 31 more channels
constexpr int64_t stage_vector_bytes(int channels) { return int64_t{8} * (channels + 31); }

// ---- gradients by weights
constexpr int kWeightBytes = 80 * 1024;  // of shared memory, so that a multiprocessor of sm_80 has two blocks
constexpr int kWeightColumns = 32;       // pixels of a tile along a row, at most

// Floats of shared memory that column_sums takes.
HOST_DEVICE constexpr int column_scratch(int threads, int groups, int values) {
  return threads / groups * groups * values + (threads > groups * values ? threads : groups * values);
}

}  // namespace contnet_fast::cuda
