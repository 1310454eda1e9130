// The passes of the diffusion field of a graph as plain C++ calls them: sizes, a time grid, pointers, a stream; no torch
// types.
//
// A pass is a structure and functions of it: `plan_*` says how many bytes of device memory, aligned to 256, it wants as
// a workspace, the other launches it on the stream. They throw std::runtime_error.
#pragma once

#include <cstdint>

#include "cuda/lib/types.h"

namespace contnet_fast::cuda {

// A solve of dH/dt = scale (A H) + diagonal H + H M + S, for a diagonal M. Maps are dense [node, feature] in the type of
// the state; sums of 16-bit numbers are float32. A has compressed rows.
struct DiffusionProblem {
  Scalar state;
  int32_t wide_index;  // indices are int64, else int32
  int32_t stages, steps;
  int64_t nodes, features, edges;
  double rows[kMostStages][kMostStages];  // h a_sj t_end
  double update[kMostStages];             // h b_j t_end
  const int32_t* slot_list;               // [evaluation], on the host
  const int32_t* slot_of;                 // the same on the device: level solve reads it
  int64_t shared_limit, processors;       // bytes that a block may have; multiprocessors: of level solve
  const void *indptr, *indices, *values;  // [nodes + 1], [edges], [edges]
  const void *scale, *diagonal;           // [slot, node] in the type of sums
  const void* source;                     // a map, or null
  const void* mixing;                     // [feature], the diagonal of M, in the type of sums; or null: there is none
  void* stream;
};

// Maps that backward reads again. Each may be null: it is not kept.
struct DiffusionMaps {
  void* states;    // [steps - 1], after each step but the last
  void* inputs;    // [step, stages - 1], of the stages from the second on
  void* products;  // [step, stage], A u of the inputs
};

struct DiffusionSolve : DiffusionProblem {
  const void* x;
  void* y;
  DiffusionMaps kept;
  void* workspace;
};

struct DiffusionBackward : DiffusionProblem {
  const void *back_indptr, *back_indices, *back_places;  // the transpose; the place of each of its edges among A's
  const void* x;
  DiffusionMaps kept;  // states alone, all of them, or nothing
  const void* grad;
  int32_t by_step;  // grad is [steps + 1] maps, by the states at the ends of the steps
  int32_t slots;
  void* grad_x;
  void *grad_scale, *grad_diagonal;  // [slot, node]; these and the next are in the type of sums, or null
  void *grad_values, *grad_source;   // [edges]; a map
  void* grad_mixing;                 // [feature, feature], of all of M
  void* workspace;
};

// to[row, node] = sum over terms of mix[row * row_stride + term * term_stride] from[term, node], of two tensors. Terms
// of weight zero are not read.
struct DiffusionMix {
  Scalar sums;
  int32_t rows, terms;
  int64_t row_stride, term_stride, nodes;
  const void* mix;
  const void* from[2];  // null: not wanted
  void* to[2];
  void* stream;
};

int64_t plan_diffusion_solve(const DiffusionSolve&);  // level stage: a launch an evaluation
void diffusion_solve(const DiffusionSolve&);
int64_t plan_diffusion_slices(
    const DiffusionSolve&);  // level solve: one launch; of what is kept it writes states alone
void diffusion_slices(const DiffusionSolve&);
int64_t plan_diffusion_slices_backward(const DiffusionBackward&);  // without gradients by values and mixing
void diffusion_slices_backward(const DiffusionBackward&);
void diffusion_reorder(const DiffusionBackward&, void* to);  // values of the edges in the order of the transpose
int64_t plan_diffusion_backward(const DiffusionBackward&);
void diffusion_backward(const DiffusionBackward&);
void diffusion_mix(const DiffusionMix&);

}  // namespace contnet_fast::cuda
