// The convolution kernels compiled for avx2.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "../include/conv.h"

#ifdef CONTNET_FAST_X86
#include "begin_avx2.h"
namespace contnet_fast::avx2 {
#include "conv_vectors.h"

#include "conv_domain.h"

#include "conv_kernels.h"

const ConvKernels<float>& conv_f32(int padded) { return padded == 4 ? Conv<float, 4>::table : Conv<float, 8>::table; }
const ConvKernels<double>& conv_f64(int) { return Conv<double, 4>::table; }
}  // namespace contnet_fast::avx2
#include "end_isa.h"
#endif
