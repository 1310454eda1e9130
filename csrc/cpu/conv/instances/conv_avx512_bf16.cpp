// Convolutions with bfloat16 operands compiled for AVX-512 BF16.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"
#include "cpu/tiles/compiled.h"
#include "cpu/tiles/tiles.h"

#ifdef CONTNET_FAST_AVX512_BF16
#include <immintrin.h>

#include "cpu/isa/begin_avx512_bf16.h"
namespace contnet_fast::avx512_bf16 {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_transform-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_stem-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

#include "cpu/tiles/avx512_bf16-inl.h"

#include "cpu/conv/conv_direct-inl.h"

const ConvKernels<float>* conv_bf16() { return &DirectConv<16>::table; }
MultiplyTiles multiply_tiles() {
  return [](const TileProduct& p) { Tiles().multiply(p); };
}
}  // namespace contnet_fast::avx512_bf16
#include "cpu/isa/end.h"
#else
namespace contnet_fast::avx512_bf16 {
const ConvKernels<float>* conv_bf16() { return nullptr; }
MultiplyTiles multiply_tiles() { return nullptr; }
}  // namespace contnet_fast::avx512_bf16
#endif
