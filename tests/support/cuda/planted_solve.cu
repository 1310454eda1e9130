// The whole solve with faults planted in it (tests/emulated/test_cuda_solve.py, tests/emulated/test_cuda_cluster.py).

#include "planted.h"

#include "cuda/conv/solve/conv_solve.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

const char* planted_conv_solve(int fault, const ConvSolve* p) {
  plant(fault);
  return guarded([&] {
    const SolvePlan plan = plan_solve(*p);
    plan.wide ? launch_wide<bf16, true, 64>(*p, plan) : launch_solve<bf16, true, 16>(*p, plan);
  });
}

}  // extern "C"
