// The launches of a backward pass at level stage, for its host code and for tests.
#pragma once

#include "cuda/conv/conv_launch.h"

namespace contnet_fast::cuda {

// What they have in common: a problem with a norm of known statistics or of the batch, and what was prepared for it.
struct Pass : ConvProblem {
  int32_t skip, nodes;      // whether the field has a skip scalar; of the basis
  const float* parameters;  // as ConvPrepare
  const float* moments;     // [evaluation, norm, (mean, variance), 1, channel]
  const float* mix;         // [slot, node]
  int32_t evaluations() const { return stages * steps; }
};

struct MapOf {
  const void* data;
  Scalar type;
};

// Sums over the batch for a norm: of the gradient by its result, and of that times the normalised input (two of three
// columns).
struct NormSums {
  int32_t norm, evaluation, slot, rows;  // norm -1: there is none; rows: 0 where the statistics are constants
  const float* sums;                     // [row, 3, channel]
};

// target <- the gradient by a convolution's input, given that by its result; in order pre also through the relu and
// skip scalar before and after it, and through a norm of known statistics. `sums` as of ConvGradient.
struct DataGradient {
  int32_t conv, norm, evaluation;  // norm: the one before the convolution, or -1
  const void* packed;              // as ConvPrepare
  const void* grad;                // in the dtype of the operands
  const void* value;               // what came before the norm and relu, in that of the state
  void* target;
  Scalar target_type;
  float* sums;  // [gradient_blocks, 3, channel], or null
};
int32_t gradient_blocks(const Pass&);  // 0: a pixel's operand exceeds the shared memory of a block
void data_gradient(const Pass&, const DataGradient&);

// Rows of sums that rate_gradient writes: one a block.
int32_t pointwise_blocks(const Pass&);

// target <- the gradient by a norm's input (`mask`: by that of the relu before it), given that by its result; `scaled`:
// times the skip scalar.
struct NormGradient : NormSums {
  int32_t mask, scaled;
  MapOf grad, value;
  void* target;  // in the dtype of the operands
};
void norm_gradient(const Pass&, const NormGradient&);

// From the gradient by a stage's input (or, with `rows`, by its norm's result) to that by the rate before it, or at
// stage 0 to the costate of the step: target = sum of own * it, costate_weight * costate, terms * inputs of later
// stages, and upstream. Kept in inputs[stage] for earlier stages.
struct StageGradient : NormSums {
  int32_t stage;
  float own, costate_weight, terms[kMostStages];  // terms: by stage, those up to `stage` unused
  const void *grad, *value, *costate, *upstream;  // of the state's dtype; upstream null: none
  void* inputs;                                   // [stage, ...]
  void* target;
  Scalar target_type;
};
void stage_gradient(const Pass&, const StageGradient&);

// target <- factor * grad; with `sums` a row a block of [3, channel]: the sum of the target, and twice that of the
// target times the normalised value (of norm 1; norm -1: the value).
struct RateGradient {
  int32_t norm, evaluation;
  float factor;
  MapOf grad;
  const void* value;
  void* target;  // in the dtype of the operands
  float* sums;   // or null
};
void rate_gradient(const Pass&, const RateGradient&);

// Gradients by the weights and biases of both convolutions of one step, split over pixels.
struct WeightGradient {
  int32_t first, splits;  // first: evaluation of the step
  const void* tape;       // [kind, stage, ...], dtype of the state: what comes before norm and relu of convolutions
  const void* grads;      // [convolution, stage, ...] in that of the operands: by their results
  float* weight_sums;     // [stage, convolution, split, tap, input, output]
  float* bias_sums;       // [stage, convolution, split, channel]
};
int32_t weight_splits(const Pass&);
void weight_gradient(const Pass&, const WeightGradient&);

// Those by the weights of a step, added to the gradients by the nodes; `fresh`: the first step that does, which has
// nothing to add to.
struct AddUp {
  int32_t count;         // up to kMostStages
  const int32_t* slots;  // [count], on the host
  int32_t splits, fresh;
  const float* weight_sums;  // [count, convolution, split, tap, input, output]
  float* weight_grads[2];    // [node, output, input, tap] of a convolution, or null: not asked for
};
void add_up(const Pass&, const AddUp&);

// sums [group, column] <- rows [group, count, column], added up.
struct Fold {
  const float* rows;
  float* sums;
  int32_t groups, count, columns;  // groups 0: nothing; columns: a multiple of 4 up to 1024
};

// The gradients by all other nodes, from sums of the whole batch that the folds make first.
struct NodeGradients {
  Fold folds[3];
  const float* biases;              // by the results of the convolutions [evaluation, convolution, channel], or null
  const float* sums[2];             // of norm 0 and norm 1 [evaluation, 3, channel], as NormSums
  int32_t bias_distance, distance;  // values of `biases`, of `sums` from an evaluation to the next
  float* grads[kParameterRows];     // [node, channel], of the skip scalar [node]; null: not asked for
};
void node_gradients(const Pass&, const NodeGradients&);

}  // namespace contnet_fast::cuda
