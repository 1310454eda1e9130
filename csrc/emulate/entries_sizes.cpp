// Bytes of the structures that tests without torch fill in, so that they can compare theirs.

#include "cuda/combine/combine_launch.h"
#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/conv_launch.h"
#include "cuda/graph/slice_plan.h"

using namespace contnet_fast::cuda;

#define NAMED_SIZE(Struct) {#Struct, sizeof(Struct)}

extern "C" {

struct NamedSize {
  const char* name;  // null after the last
  int64_t bytes;
};

const NamedSize* emulated_sizes() {
  static const NamedSize sizes[] = {
      NAMED_SIZE(Combine),
      NAMED_SIZE(ConvProblem),
      NAMED_SIZE(ConvPrepare),
      NAMED_SIZE(ConvSolve),
      NAMED_SIZE(SolvePlan),
      NAMED_SIZE(ConvSolveBackward),
      NAMED_SIZE(SolveBackwardPlan),
      NAMED_SIZE(ConvSteps),
      NAMED_SIZE(StepsPlan),
      NAMED_SIZE(ConvStages),
      NAMED_SIZE(ConvStagesBackward),
      NAMED_SIZE(Pass),
      NAMED_SIZE(MapOf),
      NAMED_SIZE(NormSums),
      NAMED_SIZE(NormGradient),
      NAMED_SIZE(StageGradient),
      NAMED_SIZE(RateGradient),
      NAMED_SIZE(DataGradient),
      NAMED_SIZE(WeightGradient),
      NAMED_SIZE(AddUp),
      NAMED_SIZE(Fold),
      NAMED_SIZE(NodeGradients),
      NAMED_SIZE(SlicePlan),
      {nullptr, 0},
  };
  return sizes;
}

}  // extern "C"
