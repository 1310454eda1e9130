// combine_block and compensate_block compiled for avx512.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/combine/rk_combine.h"

#ifdef CONTNET_FAST_X86
#include "cpu/isa/begin_avx512.h"
namespace contnet_fast::avx512 {
#include "cpu/combine/rk_combine_block-inl.h"
#include "cpu/combine/rk_compensate_block-inl.h"
}
#include "cpu/isa/end.h"
#endif
