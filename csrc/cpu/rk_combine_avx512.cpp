// combine_block compiled for avx512. Headers come before the instruction set, so that no inline function of theirs is
// compiled for it and chosen by the linker for CPUs that lack it.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../include/rk_combine.h"

#ifdef CONTNET_FAST_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
namespace contnet_fast::avx512 {
#include "rk_combine_block.h"
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
