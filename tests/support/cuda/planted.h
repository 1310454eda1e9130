// Faults planted in kernels that this header comes before: in the emulator alone, one at a time.
#pragma once

#ifdef __CUDACC__
#define PLANTED_FAULT 0
inline void plant(int) {}
#else
static int planted_fault = 0;
#define PLANTED_FAULT planted_fault
inline void plant(int fault) { planted_fault = fault; }
#endif
