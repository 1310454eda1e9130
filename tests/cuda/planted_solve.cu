// The whole solve with faults planted in it (tests/test_cuda_solve.py).

#ifdef __CUDACC__
#define PLANTED_FAULT 0
#else
static int planted_fault = 0;
#define PLANTED_FAULT planted_fault
#endif

#include "conv_solve.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_conv_solve(int fault, const ConvSolve* p) {
#ifdef __CUDACC__
  (void)fault;
#else
  planted_fault = fault;
#endif
  return guarded([&] { launch_solve<bf16, true, 16>(*p, plan_solve(*p)); });
}

}  // extern "C"
