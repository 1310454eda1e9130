// A step back of the whole solve with faults planted in it (tests/emulated/test_cuda_solve_backward.py).

#include "planted.h"

#define conv_solve_backward planted_solve_backward
#include "cuda/conv/solve/conv_solve_backward.cu"
#undef conv_solve_backward

#include "emulate/entries.h"

extern "C" {

const char* planted_conv_solve_backward(int fault, const contnet_fast::cuda::ConvSolveBackward* p) {
  plant(fault);
  return contnet_fast::cuda::guarded([&] { contnet_fast::cuda::planted_solve_backward(*p); });
}

}  // extern "C"
