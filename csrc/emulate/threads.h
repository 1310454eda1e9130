// What memory.cpp needs to know of the thread that runs; inside the emulator only.
#pragma once

#include "emulate/machine.h"

namespace contnet_fast::cuda::emulate {

Access access(uint32_t era, Place place);
int cluster_size();
std::string describe(Place place);
void begin_era(uint32_t era);  // of every registered buffer
bool noting();                 // launches are listed instead of run

}  // namespace contnet_fast::cuda::emulate
