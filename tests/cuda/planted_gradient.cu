// Gradients by weights with faults planted in them (tests/test_cuda_stages_backward.py).

#ifdef __CUDACC__
#define PLANTED_FAULT 0
#else
static int planted_fault = 0;
#define PLANTED_FAULT planted_fault
#endif

#include "weight_gradient.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_weight_gradient(int fault, const Pass* p, const WeightGradient* w) {
#ifdef __CUDACC__
  (void)fault;
#else
  planted_fault = fault;
#endif
  return guarded([&] { launch_weights<bf16, true>(*p, *w); });
}

}  // extern "C"
