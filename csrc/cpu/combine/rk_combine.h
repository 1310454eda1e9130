// Stage combination of explicit Runge-Kutta schemes on the CPU: y + sum_j c_j k_j, with an optional embedded error.
// Plain pointers, no torch types: bind/module.cpp owns shapes, layouts and threads.
#pragma once

#include <cstdint>

namespace contnet_fast {

enum class Scalar { f32, f64, bf16, f16 };

// One combination over `n` scalars in storage order (a complex number is two). Sums run in float, for f64 in double.
struct Combination {
  Scalar state;
  Scalar rate;
  const void* y;
  const void* const* ks;
  const double* coefficients;
  int terms;
  void* out;
};

// The embedded error e = sum_j error_j k_j in the same pass. `is_complex`: |e|, |y| and |y1| are of pairs.
struct ErrorNorm {
  const double* error;
  double rtol;
  double atol;
  bool is_complex;
};

// Scalars in a block. A block is the unit of work of a thread and of a partial sum, whatever the number of threads.
constexpr int64_t kBlock = 2048;

// Combine scalars [begin, begin + count), count <= kBlock. Returns the sum of squares of e / (atol + rtol max(|y|,
// |y1|)), 0 without `norm`.
using CombineBlock = double (*)(const Combination&, const ErrorNorm* norm, int64_t begin, int64_t count);

// What rounding loses of a state: of the step before (null: nothing), and of this one; float, for f64 double.
struct Compensation {
  const void* before;
  void* after;
};

// Combine scalars with what the step before lost: out + after = y + before + sum_j c_j k_j, whose sum runs in double,
// of 16-bit states in float.
using CompensateBlock = void (*)(const Combination&, const Compensation&, int64_t begin, int64_t count);

namespace portable {
double combine_block(const Combination&, const ErrorNorm*, int64_t, int64_t);
void compensate_block(const Combination&, const Compensation&, int64_t, int64_t);
}
#ifdef CONTNET_FAST_X86
namespace avx2 {
double combine_block(const Combination&, const ErrorNorm*, int64_t, int64_t);
void compensate_block(const Combination&, const Compensation&, int64_t, int64_t);
}
namespace avx512 {
double combine_block(const Combination&, const ErrorNorm*, int64_t, int64_t);
void compensate_block(const Combination&, const Compensation&, int64_t, int64_t);
}
#endif

}  // namespace contnet_fast
