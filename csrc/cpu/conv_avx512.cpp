// The convolution kernels compiled for avx512.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "../include/conv.h"

#ifdef CONTNET_FAST_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
namespace contnet_fast::avx512 {
#include "conv_vectors.h"

#include "conv_domain.h"

#include "conv_kernels.h"

const ConvKernels<float>& conv_f32(int padded) {
  return padded == 4 ? Conv<float, 4>::table : padded == 8 ? Conv<float, 8>::table : Conv<float, 16>::table;
}
const ConvKernels<double>& conv_f64(int padded) {
  return padded == 4 ? Conv<double, 4>::table : Conv<double, 8>::table;
}
}  // namespace contnet_fast::avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
