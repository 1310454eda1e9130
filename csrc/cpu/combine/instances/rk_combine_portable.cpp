// combine_block and compensate_block for any CPU.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "cpu/combine/rk_combine.h"

namespace contnet_fast::portable {
#include "cpu/combine/rk_combine_block-inl.h"
#include "cpu/combine/rk_compensate_block-inl.h"
}
