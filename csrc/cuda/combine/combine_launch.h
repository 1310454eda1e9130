// Stage combinations as plain C++ launches them on a stream; no torch types. They throw std::runtime_error.
#pragma once

#include <cstdint>

#include "cuda/lib/types.h"
#include "runtime/limits.h"

namespace contnet_fast::cuda {

constexpr int kMostTerms = limits::MOST_STAGES, kMostLeaves = 8;

// y + sum_j c_j k_j of up to eight leaves of one dtype in one launch; with `partials` also the sums of squares of
// e / (atol + rtol max(|y|, |out|)), e = sum_j error_j k_j, one a block (`combine_blocks`). Compensated: out + after =
// y + before + the sum, which then runs in double, of 16-bit states in float; `before` and `after` are float, for f64
// double.
struct Combine {
  Scalar state, rate;  // rate: that of the state, or one of them float32 and the other 16-bit
  int32_t leaves, terms;
  const void* y[kMostLeaves];
  const void* k[kMostLeaves][kMostTerms];
  void* out[kMostLeaves];
  const void* before[kMostLeaves];  // null: nothing
  void* after[kMostLeaves];         // null: not compensated
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

}  // namespace contnet_fast::cuda
