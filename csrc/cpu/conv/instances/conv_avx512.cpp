// The convolution kernels compiled for avx512.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"

#ifdef CONTNET_FAST_X86
#include "cpu/isa/begin_avx512.h"
namespace contnet_fast::avx512 {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

const ConvKernels<float>& conv_f32(int padded) {
  return padded == 4 ? Conv<float, 4>::table : padded == 8 ? Conv<float, 8>::table : Conv<float, 16>::table;
}
const ConvKernels<double>& conv_f64(int padded) {
  return padded == 4 ? Conv<double, 4>::table : Conv<double, 8>::table;
}
}  // namespace contnet_fast::avx512
#include "cpu/isa/end.h"
#endif
