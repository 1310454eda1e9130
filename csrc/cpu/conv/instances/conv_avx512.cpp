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

#include "cpu/conv/conv_transform-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_stem-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

template <int M>
static const ConvKernels<float>& tiles_of(int padded) {
  return padded == 4 ? Conv<float, 4, M>::table : padded == 8 ? Conv<float, 8, M>::table : Conv<float, 16, M>::table;
}
const ConvKernels<float>& conv_f32(int padded, int tile) {
  return tile == 4 ? tiles_of<4>(padded) : tiles_of<2>(padded);
}
const ConvKernels<double>& conv_f64(int padded) {
  return padded == 4 ? Conv<double, 4>::table : Conv<double, 8>::table;
}
}  // namespace contnet_fast::avx512
#include "cpu/isa/end.h"
#endif
