// Convolutions with bfloat16 operands compiled for AMX.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"
#include "cpu/tiles/compiled.h"
#include "cpu/tiles/tiles.h"

#ifdef CONTNET_FAST_AMX
#include <immintrin.h>

#include "cpu/isa/begin_amx.h"
namespace contnet_fast::amx {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_transform-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_stem-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

#include "cpu/tiles/amx-inl.h"

#include "cpu/conv/conv_direct-inl.h"

const ConvKernels<float>* conv_bf16() { return &DirectConv<16>::table; }
MultiplyTiles multiply_tiles() {
  return [](const TileProduct& p) { Tiles().multiply(p); };
}
}  // namespace contnet_fast::amx
#include "cpu/isa/end.h"
#else
namespace contnet_fast::amx {
const ConvKernels<float>* conv_bf16() { return nullptr; }
MultiplyTiles multiply_tiles() { return nullptr; }
}  // namespace contnet_fast::amx
#endif
