// The backward pass of a whole solve: its shared memory and its workspace.
#pragma once

#include "cuda/conv/conv_launch.h"
#include "cuda/conv/plan/conv_layout.h"
#include "cuda/conv/workspace.h"

namespace contnet_fast::cuda {

// Of a channel over pixels: gradients by the results of the convolutions; by that of each norm, plain and times the
// normalised value; in order pre also by the second operand, times it.
HOST_DEVICE constexpr int channel_kinds(bool post) { return post ? 6 : 7; }

struct BackwardArrays {  // bytes of shared memory before each, and of all
  int partial, spare, end;
};

inline BackwardArrays backward_arrays(int vectors, int channels, int stages, int warps_m) {
  BackwardArrays a{};
  a.partial = vectors + 4 * kStageRows * channels * stages;
  a.spare = a.partial + 4 * (4 + 7 * warps_m) * channels;
  a.end = a.spare + (channels == 16 ? 4 * 9 * 16 * 16 : 0);
  return a;
}

struct SolveBackwardPieces {  // of the workspace
  unsigned char* tape;
  float *rates, *costates, *weights, *channels, *folded;

  SolveBackwardPieces(const ConvSolveBackward& p, const SolveBackwardPlan& plan, Arena& arena) {
    const ConvLayout layout{plan.channels, p.operand == Scalar::f32 ? 4 : 2};
    const int64_t map = int64_t{1} * layout.values() * plan.threads, blocks = plan.blocks, stages = p.stages,
                  c = p.channels;
    const int64_t sums = stages * p.steps * channel_kinds(p.post != 0) * c;
    tape = arena.take(blocks * stages * kinds(p) * map * layout.bytes);
    rates = arena.floats(blocks * (stages + 1) * map);
    costates = arena.floats(p.images * map);
    weights = arena.floats(stages * 2 * blocks * 9 * c * c);
    channels = arena.floats(sums * blocks);
    folded = arena.floats(sums);
  }
};

}  // namespace contnet_fast::cuda
