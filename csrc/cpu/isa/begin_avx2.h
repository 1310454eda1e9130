// From here to end.h, functions are compiled for avx2. Headers come before it, so that no inline function of theirs is
// compiled so and chosen by the linker for CPUs that lack it.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
