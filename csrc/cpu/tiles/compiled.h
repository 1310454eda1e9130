// Which matrix instructions this compiler can make.
#pragma once

#ifdef CONTNET_FAST_X86
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define CONTNET_FAST_AMX
#endif
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define CONTNET_FAST_AVX512_BF16
#endif
#endif
