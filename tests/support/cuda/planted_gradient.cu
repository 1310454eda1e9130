// Gradients by weights with faults planted in them (tests/emulated/test_cuda_weight_gradient.py).

#include "planted.h"

#include "cuda/conv/backward/weight_gradient.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_weight_gradient(int fault, const Pass* p, const WeightGradient* w) {
  plant(fault);
  return guarded([&] { launch_weights<bf16, true>(*p, *w); });
}

}  // extern "C"
