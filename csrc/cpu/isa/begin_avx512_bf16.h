// From here to end.h, functions are compiled for avx512_bf16. Headers come before it, so that no inline function of
// theirs is compiled so and chosen by the linker for CPUs that lack it.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
