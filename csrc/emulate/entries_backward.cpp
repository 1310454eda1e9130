// The launchers of backward passes with C linkage, for tests without torch: each returns what went wrong, or null.

#include "cuda/conv/backward/backward_launch.h"
#include "emulate/entries.h"

using namespace contnet_fast::cuda;

extern "C" {

void emulated_plan_stages_backward(const ConvStagesBackward* p, StepsPlan* plan) { *plan = plan_stages_backward(*p); }
const char* emulated_conv_stages_backward(const ConvStagesBackward* p) {
  return guarded([&] { conv_stages_backward(*p); });
}

int32_t emulated_weight_splits(const Pass* p) { return weight_splits(*p); }
const char* emulated_weight_gradient(const Pass* p, const WeightGradient* w) {
  return guarded([&] { weight_gradient(*p, *w); });
}
const char* emulated_add_up(const Pass* p, const AddUp* w) {
  return guarded([&] { add_up(*p, *w); });
}
const char* emulated_node_gradients(const Pass* p, const NodeGradients* g) {
  return guarded([&] { node_gradients(*p, *g); });
}

int32_t emulated_gradient_blocks(const Pass* p) { return gradient_blocks(*p); }
const char* emulated_data_gradient(const Pass* p, const DataGradient* g) {
  return guarded([&] { data_gradient(*p, *g); });
}

int32_t emulated_pointwise_blocks(const Pass* p) { return pointwise_blocks(*p); }
const char* emulated_norm_gradient(const Pass* p, const NormGradient* g) {
  return guarded([&] { norm_gradient(*p, *g); });
}
const char* emulated_stage_gradient(const Pass* p, const StageGradient* g) {
  return guarded([&] { stage_gradient(*p, *g); });
}
const char* emulated_rate_gradient(const Pass* p, const RateGradient* g) {
  return guarded([&] { rate_gradient(*p, *g); });
}

}  // extern "C"
