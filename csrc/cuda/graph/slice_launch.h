// The launches of level solve of the diffusion field, by type, and which maps the owners of rows keep.
#pragma once

#include "cuda/graph/graph_launch.h"
#include "cuda/graph/slice_plan.h"

namespace contnet_fast::cuda {

// Which rates a stage reads beyond the one after them: fills [stage] with their places among maps, or -1. Their number.
inline int place_rates(const DiffusionProblem& p, int* places) {
  int count = 0;
  for (int j = 0; j < p.stages; ++j) {
    bool later = false;
    for (int s = j + 2; s < p.stages; ++s) later = later || p.rows[s][j] != 0.0;
    places[j] = later ? count++ : -1;
  }
  return count;
}

enum SliceMap { kStateMap, kUpdateMap, kSliceMaps };  // of a forward pass; rates come after them

inline int slice_maps(const DiffusionProblem& p) {
  int places[kMostStages];
  return kSliceMaps + place_rates(p, places);
}

// Maps of a backward pass: `place` of gradients by inputs of stages, those that more than one earlier rate reads, or -1.
struct SliceBackMaps {
  int costate, total, gradient;                  // by the rate of the stage at hand
  int input_gradients, inputs, products, rates;  // the first of each
  int count, place[kMostStages];
};

inline SliceBackMaps slice_back_maps(const DiffusionBackward& p) {
  SliceBackMaps maps{0, 1, 2, 3, 0, 0, 0, 3, {}};
  const auto take = [&](int count) {
    const int first = maps.count;
    maps.count += count;
    return first;
  };
  for (int r = 0; r < p.stages; ++r) {
    bool later = false;
    for (int s = 0; s + 1 < r; ++s) later = later || p.rows[r][s] != 0.0;
    maps.place[r] = later ? take(1) - maps.input_gradients : -1;
  }
  int places[kMostStages];
  maps.inputs = take(p.grad_diagonal != nullptr ? p.stages : 0);
  maps.products = take(p.grad_scale != nullptr ? p.stages : 0);
  maps.rates = take(p.grad_scale != nullptr || p.grad_diagonal != nullptr ? place_rates(p, places) : 0);
  return maps;
}

// What a backward pass has in its workspace: values of edges in the order of the transpose, maps, sums of each slice by
// scale and diagonal, and where they were not kept the states after all steps but the last, with the maps they take.
struct SliceBackPieces {
  unsigned char *values, *maps, *scale, *diagonal, *states, *forward;
};

void slice_solve_f32(const DiffusionSolve&, const SlicePlan&);  // instances/
void slice_solve_f64(const DiffusionSolve&, const SlicePlan&);
void slice_solve_bf16(const DiffusionSolve&, const SlicePlan&);
void slice_solve_f16(const DiffusionSolve&, const SlicePlan&);
void slice_backward_f32(const DiffusionBackward&, const SlicePlan&, const SliceBackPieces&);
void slice_backward_f64(const DiffusionBackward&, const SlicePlan&, const SliceBackPieces&);
void slice_backward_bf16(const DiffusionBackward&, const SlicePlan&, const SliceBackPieces&);
void slice_backward_f16(const DiffusionBackward&, const SlicePlan&, const SliceBackPieces&);

}  // namespace contnet_fast::cuda
