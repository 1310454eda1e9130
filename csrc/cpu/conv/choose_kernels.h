// The kernels for a map on this machine.
#pragma once

#include <type_traits>

#include "cpu/conv/conv_kernels.h"
#include "runtime/isa.h"

namespace contnet_fast {

// Where the CPU has no products of bfloat16 operands, the portable ones stand in: right and slow.
inline const ConvKernels<float>& direct_kernels() {
  if (instruction_set() == Isa::amx) return *amx::conv_bf16();
  if (instruction_set() == Isa::avx512_bf16) return *avx512_bf16::conv_bf16();
  return *portable::conv_bf16();
}

template <typename T>
const ConvKernels<T>& choose_kernels(const Geometry& map) {
  const int padded = map.padded;
  if constexpr (std::is_same_v<T, float>)
    if (map.direct) return direct_kernels();
#ifdef CONTNET_FAST_X86
  if constexpr (std::is_same_v<T, float>) {
    if (instruction_set() >= Isa::avx512) return avx512::conv_f32(padded, map.tile);
    if (instruction_set() == Isa::avx2) return avx2::conv_f32(padded, map.tile);
  } else {
    if (instruction_set() >= Isa::avx512) return avx512::conv_f64(padded);
    if (instruction_set() == Isa::avx2) return avx2::conv_f64(padded);
  }
#endif
  if constexpr (std::is_same_v<T, float>)
    return portable::conv_f32(padded, map.tile);
  else
    return portable::conv_f64(padded);
}

}  // namespace contnet_fast
