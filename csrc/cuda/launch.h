// What csrc/cuda offers to plain C++: launches on a stream, no torch types. They throw std::runtime_error.
#pragma once

#include <cstdint>

namespace contnet_fast::cuda {

enum class Scalar : int32_t { f32, f64, bf16, f16 };

constexpr int kMostTerms = 13, kMostLeaves = 8;

// y + sum_j c_j k_j of up to eight leaves of one dtype in one launch; with `partials` also the sums of squares of
// e / (atol + rtol max(|y|, |out|)), e = sum_j error_j k_j, one a block (`combine_blocks`).
struct Combine {
  Scalar state, rate;  // rate: that of the state, or one of them float32 and the other 16-bit
  int32_t leaves, terms;
  const void* y[kMostLeaves];
  const void* k[kMostLeaves][kMostTerms];
  void* out[kMostLeaves];
  int64_t size[kMostLeaves];
  double coefficient[kMostTerms];
  double error[kMostTerms];
  double rtol, atol;
  double* partials;  // or null
  void* stream;
};

int64_t combine_blocks(const Combine&);
void rk_combine(const Combine&);

// out = sqrt(sum of partials / elements), summed in one fixed order; out is a double or a float.
void error_norm(const double* partials, int64_t count, int64_t elements, void* out, Scalar type, void* stream);

// ---- the whole solve of the convolutional field, one block an image

constexpr int kMostStages = 13, kParameterRows = 7;

enum class Norm : int32_t { none, known, sample };

// Maps are dense [image, pixel, channel]. Operands are laid out as the Triton backend's preparation packs them.
struct ConvSolve {
  Scalar state, operand;  // state: f32, or that of the operands; operand: bf16, f16 or f32
  int32_t tf32;           // whether f32 operands may be rounded to TF32
  int32_t post;           // the order: norms after the convolutions
  Norm norm;              // known: from `moments`; sample: within an image, over groups of `group` channels
  int32_t images, height, width, channels, group, stages, steps, slots;
  float eps, norm_eps;
  float rows[kMostStages][kMostStages];  // h a_sj
  float update[kMostStages];             // h b_j
  int64_t shared_limit;                  // bytes of shared memory that a block may have on this device
  const void* x;
  void* y;
  void* states;             // state after each step but the last [steps - 1, ...], or null
  const void* packed;       // [conv, slot, tap, input, output]
  const float* parameters;  // [slot, kParameterRows, channel]: biases; weight and bias of norm 0, of norm 1; skip
  float* moments;           // [evaluation, norm, (mean, variance), images or 1, channel]: read if known, written if sample
  const int32_t* slot_of;   // [evaluation]
  void* rates;              // scratch of plan.scratch bytes, or null if there are none
  void* stream;
};

// How a solve would run; `refusal` is null, or why it cannot.
struct SolvePlan {
  const char* refusal;
  int32_t channels;  // padded
  int32_t threads, values;  // values of the state a thread
  int32_t tiles;            // operands in shared memory: two, or one where only that fits
  int32_t chunks;           // pieces that the weights of a convolution arrive in; of one piece they stay if slots repeat
  int64_t shared, scratch;  // bytes: of a block, of the batch
};

SolvePlan plan_solve(const ConvSolve&);
void conv_solve(const ConvSolve&);

}  // namespace contnet_fast::cuda
