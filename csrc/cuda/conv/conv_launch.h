// The passes of the convolutional field as plain C++ calls them: sizes, a time grid, pointers, a stream; no torch
// types.
//
// A pass is a structure and functions of it: `plan_*` says how it would run (`refusal`: null, or why it cannot;
// `workspace`: bytes of device memory that it wants, aligned to 256), the other launches it on the stream. They throw
// std::runtime_error.
#pragma once

#include "cuda/lib/types.h"
#include "runtime/conv_field.h"
#include "runtime/export.h"
#include "runtime/limits.h"

namespace contnet_fast::cuda {

constexpr int kMostChannels = limits::MOST_CHANNELS;

// Rows of the parameters of a slot.
enum ParameterRow { kRowBias1, kRowBias2, kRowGamma1, kRowBeta1, kRowGamma2, kRowBeta2, kRowSkip, kParameterRows };
constexpr int kNodeOfRow[kParameterRows] = {kBias1, kBias2, kGamma1, kBeta1, kGamma2, kBeta2, kSkip};
static_assert(kParameterRows == limits::PARAMETER_ROWS, "Python knows as many");

// Row of the weight of a norm; that of its bias is the next.
HOST_DEVICE constexpr int weight_row(int norm) { return kRowGamma1 + (kRowGamma2 - kRowGamma1) * norm; }

// known: statistics that the input does not change; sample: of an image, over groups of channels; batch: of the batch
enum class Norm : int32_t { none, known, sample, batch };

// One solve. Maps are dense [image, pixel, channel]. Evaluations that read the same theta(t) share a slot.
struct ConvProblem {
  Scalar state, operand;  // state: f32, or that of the operands; operand, which weights have: bf16, f16 or f32
  Scalar vectors;         // of the other nodes: f32, or that of the operands
  int32_t tf32;           // whether f32 operands may be rounded to TF32
  int32_t post;           // the order: norms after the convolutions
  Norm norm;              // sample: over groups of `group` channels
  int32_t images, height, width, channels, group, stages, steps, slots;
  int32_t processors;     // multiprocessors of the device; this and two more are DeviceFacts
  int32_t cluster_limit;  // blocks of a cluster on this device; 1: it has none
  float eps, norm_eps;
  float rows[kMostStages][kMostStages];  // h a_sj
  float update[kMostStages];             // h b_j
  int64_t shared_limit;                  // bytes of shared memory that a block may have on this device
  const int32_t* slot_of;                // [evaluation], on the device
  const int32_t* slot_list;              // the same on the host
  void* stream;
};

// ---- what all passes read, mixed from the nodes in one launch

struct ConvPrepare : ConvProblem {
  const void* nodes[kNodes];  // ConvNodes in order, [basis, ...], contiguous; null if absent
  const float* mix;           // [slot, basis]
  int64_t basis;
  const void* x;      // the state whose statistics go to `partials`
  void* packed;       // [conv, slot, tap, input, output] in the dtype of the operands
  float* parameters;  // [slot, kParameterRows, channel]: biases; weight and bias of norm 0, of norm 1; skip
  float* moments;     // [evaluation, norm, (mean, variance), 1, channel]: written if norm is known; or null
  float* partials;    // [input_rows, partial_size], or null
};

// A row of partial statistics of a map, one a block: means, centred sums of squares, the count. Of x there are
// input_rows.
int64_t input_rows(const ConvProblem&);
HOST_DEVICE constexpr int64_t partial_size(int64_t channels) { return 2 * channels + 4; }

void conv_prepare(const ConvPrepare&);

// ---- level solve: every step and stage of an image by one block, or by a cluster of them

struct ConvSolve : ConvProblem {  // of norm batch: refused
  const void* x;
  void* y;
  void* states;             // state after each step but the last [steps - 1, ...], or null
  const void* packed;       // as ConvPrepare
  const float* parameters;  // as ConvPrepare
  float* moments;  // [evaluation, norm, (mean, variance), images or 1, channel]: read if known, written if sample
  void* rates;     // scratch of plan.scratch bytes, or null if there are none
};

struct SolvePlan {
  const char* refusal;
  int32_t channels;         // padded
  int32_t threads, values;  // values of the state a thread
  int32_t tiles;            // operands in shared memory: two, or one where only that fits
  int32_t chunks;         // pieces that the weights of a convolution arrive in; of one piece they stay if slots repeat
  int32_t wide;           // whether warps have twice the pixels; an image may then be split over a cluster
  int32_t cluster, rows;  // blocks of an image, and its rows that a block has
  int64_t shared, scratch;  // bytes: of a block, of the batch
};

CONTNET_FAST_API SolvePlan plan_solve(const ConvProblem&);
void conv_solve(const ConvSolve&);

// Its backward pass: two launches a step and two at the end.
struct ConvSolveBackward : ConvProblem {  // of norm batch: refused
  int32_t skip, return_steps;             // whether there is a skip scalar; whether `grad` has a map for every state
  const float* mix;                       // [slot, basis]
  int64_t basis;
  const void* x;
  const void* states;       // state after each step but the last [steps - 1, ...]
  const void* packed;       // as ConvPrepare
  const float* parameters;  // as ConvPrepare
  const float* moments;     // as ConvSolve, of the forward pass; null: no norm
  const void* grad;         // upstream gradient, [steps + 1, ...] or of the last state alone
  void* grad_x;             // dtype of the state
  float* grads[kNodes];     // contiguous, as the nodes; null: not asked for, as those of known statistics must be
  void* workspace;          // of plan.workspace bytes
};

struct SolveBackwardPlan {
  const char* refusal;
  int32_t channels, threads, blocks;
  int64_t shared, workspace;  // bytes
};

CONTNET_FAST_API SolveBackwardPlan plan_solve_backward(const ConvSolveBackward&);
void conv_solve_backward(const ConvSolveBackward&);

// ---- level stage: a launch for each convolution

// Steps `first` .. `first + count - 1` from prepared operands. The backward pass makes a step's maps again so: of norm
// known, with the moments of the forward pass, count 1, y null.
struct ConvSteps : ConvProblem {  // of norm sample: refused
  int64_t first, count;
  const void* x;            // the state before them
  const void* packed;       // as ConvPrepare
  const float* parameters;  // as ConvPrepare
  float* moments;           // [evaluation, norm, (mean, variance), 1, channel]: read if known, written if batch
  void* statistics;       // of norm batch [evaluation, norm, (mean, unbiased variance), channel], dtype of the vectors
  const float* partials;  // of x, where `needs_partials`
  void* y;                // the state after them, or null: not wanted
  void* states;           // the state after each of them but the last [count - 1, ...], or null
  void* tape;       // [step, kind, stage, image, pixel, channel], dtype of the state, or null; kinds: the input of a
                    // stage, the first convolution's result (post: after relu), post: the second's after relu
  void* workspace;  // of plan.workspace bytes
};

struct StepsPlan {
  const char* refusal;
  int64_t workspace;
};

inline bool needs_partials(const ConvProblem& p) { return p.norm == Norm::batch && p.post == 0; }
inline int kinds(const ConvProblem& p) { return p.post != 0 ? 3 : 2; }

StepsPlan plan_steps(const ConvSteps&);
void conv_steps(const ConvSteps&);

// The forward pass: conv_prepare, then all steps.
struct ConvStages : ConvProblem {
  const void* nodes[kNodes];  // as ConvPrepare
  const float* mix;
  int64_t basis;
  const void* x;
  float* moments;    // [evaluation, norm, (mean, variance), 1, channel]: written unless there is no norm
  void* statistics;  // as ConvSteps, and the next three
  void* y;
  void* states;
  void* tape;
  void* workspace;
};

StepsPlan plan_stages(const ConvStages&);
void conv_stages(const ConvStages&);

// The backward pass, step by step from the last.
struct ConvStagesBackward : ConvProblem {  // of norm sample: refused
  const void* nodes[kNodes];               // as ConvPrepare
  const float* mix;
  int64_t basis;
  const void* x;
  float* moments;      // as the forward pass wrote them; not written
  const void* states;  // as the forward pass kept them, or null; of neither these nor a tape they are made again
  const void* tape;    // likewise
  const void* grad;    // by y, dtype of the state; by_step: by x and the state after each step [steps + 1, ...]
  int32_t by_step;
  void* grad_x;          // dtype of the state
  float* grads[kNodes];  // contiguous, as the nodes; null: not asked for, as those of known statistics must be
  void* workspace;
};

StepsPlan plan_stages_backward(const ConvStagesBackward&);
void conv_stages_backward(const ConvStagesBackward&);

}  // namespace contnet_fast::cuda
