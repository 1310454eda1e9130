// combine_block and compensate_block for any CPU.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../include/rk_combine.h"

namespace contnet_fast::portable {
#include "rk_combine_block.h"
#include "rk_compensate_block.h"
}
