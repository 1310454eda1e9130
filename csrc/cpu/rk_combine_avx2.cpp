// combine_block and compensate_block compiled for avx2.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../include/rk_combine.h"

#ifdef CONTNET_FAST_X86
#include "begin_avx2.h"
namespace contnet_fast::avx2 {
#include "rk_combine_block.h"
#include "rk_compensate_block.h"
}
#include "end_isa.h"
#endif
