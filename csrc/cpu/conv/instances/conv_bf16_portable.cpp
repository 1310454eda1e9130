// Convolutions with bfloat16 operands for any CPU.
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/conv/conv_kernels.h"
#include "cpu/tiles/tiles.h"

namespace contnet_fast::portable {
#include "cpu/vectors-inl.h"

#include "cpu/conv/conv_transform-inl.h"

#include "cpu/conv/conv_domain-inl.h"

#include "cpu/conv/conv_stem-inl.h"

#include "cpu/conv/conv_kernels-inl.h"

#include "cpu/tiles/portable-inl.h"

#include "cpu/conv/conv_direct-inl.h"

const ConvKernels<float>* conv_bf16() { return &DirectConv<4>::table; }
MultiplyTiles multiply_tiles() {
  return [](const TileProduct& p) { Tiles().multiply(p); };
}
}  // namespace contnet_fast::portable
