// What one launch of the diffusion field is told.
#pragma once

#include <cstdint>

#include "cuda/lib/types.h"

namespace contnet_fast::cuda {

// An evaluation at u, or its gradient (diffusion_stage.h). Pointers that are not named may be null: without them that
// part is left out.
struct DiffusionPass {
  Scalar state;
  bool wide_index, back;
  int64_t nodes, features, edges;
  const void *indptr, *indices, *values;  // needed; of the transpose if back
  const void *scale, *diagonal;           // needed, [node], at the slot of the evaluation
  const void* source;
  const void* u;     // needed
  const void* base;  // needed with target: what the combination begins with, times `before`
  const void* upstream;
  const void* terms;   // maps: of index[j] with weight[j], j < count
  void* kept;          // gets r
  void* product;       // gets A u
  void* target;        // gets the combination
  void* total;         // in the type of sums: factor u is added, or written if fresh
  const void* mixing;  // [feature], in the type of sums: added to the diagonal
  bool fresh;
  double own, before, factor;
  int32_t count, index[kMostStages];
  double weight[kMostStages];
  void* stream;
};

// What a step gives to gradients that depend on the states: its state u_0, the inputs u_s of its other stages and A u_s
// of all; g_s, the gradients by its rates, are `rates`, and of the last stage `factor` times the costate.
struct DiffusionStep {
  Scalar state;
  bool wide_index;
  int64_t nodes, features, edges;
  int32_t stages, slots[kMostStages];
  bool fresh_slots[kMostStages], fresh;  // nothing has been added to the gradient yet
  const void *u, *inputs, *products, *rates, *costate;
  double factor;
  const void *indptr, *indices, *scale;
  void *grad_scale, *grad_diagonal, *grad_values;  // or null
  void* grad_mixing;                               // [part, feature, feature], of mixing_parts of the nodes; or null
  void* stream;
};

void diffusion_stage_f32(const DiffusionPass&);  // instances/
void diffusion_stage_f64(const DiffusionPass&);
void diffusion_stage_bf16(const DiffusionPass&);
void diffusion_stage_f16(const DiffusionPass&);
void diffusion_row_gradients(const DiffusionStep&);  // grad_scale[slot, i] += g_s[i] . (A u_s)[i], grad_diagonal: . u_s
// grad_mixing[part, i, j] += u_s[:, i] . g_s[:, j] over the nodes of a part; the sum of all parts, [feature, feature]
int mixing_parts(int64_t nodes, int64_t features);
void diffusion_mixing_gradients(const DiffusionStep&);
void diffusion_add_parts(const DiffusionStep&, void* to);
void diffusion_value_gradients(const DiffusionStep&);  // grad_values[e] += scale_i g_s[i] . u_s[j], of the edge j to i

}  // namespace contnet_fast::cuda
