// Level stage and the data gradient with faults planted in their bands (tests/emulated/test_cuda_stages.py, tests/emulated/test_cuda_data_gradient.py).

#include "planted.h"

#define conv_stages planted_stages
#define plan_stages planted_plan_stages
#define conv_steps planted_steps
#define plan_steps planted_plan_steps
#define conv_stage_half planted_stage_half
#define data_gradient planted_gradient
#define gradient_blocks planted_gradient_blocks
#define conv_gradient_half planted_gradient_half
#include "cuda/conv/stage/stages.cu"
#include "cuda/conv/backward/conv_gradient.cu"
#include "cuda/conv/instances/conv_stage_half.cu"
#undef conv_stages
#undef data_gradient

#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_conv_stages(int fault, const ConvStages* p) {
  plant(fault);
  return guarded([&] { planted_stages(*p); });
}

const char* planted_data_gradient(int fault, const Pass* p, const DataGradient* g) {
  plant(fault);
  return guarded([&] { planted_gradient(*p, *g); });
}

}  // extern "C"
