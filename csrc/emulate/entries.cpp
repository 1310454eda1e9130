// The launchers with C linkage, for tests without torch: each returns what went wrong, or null.

#include "emulate/entries.h"

#include "cuda/combine/combine_launch.h"
#include "cuda/conv/conv_launch.h"

using namespace contnet_fast::cuda;

extern "C" {

void emulated_register(const char* name, void* data, int64_t bytes, bool written, bool writable) {
  emulate::register_buffer(name, data, static_cast<size_t>(bytes), written, writable);
}
void emulated_forget() { emulate::forget_buffers(); }
int64_t emulated_first_unwritten(const void* data) { return emulate::buffer_of(data)->first_unwritten(); }

int64_t emulated_combine_blocks(const Combine* p) { return combine_blocks(*p); }
const char* emulated_rk_combine(const Combine* p) {
  return guarded([&] { rk_combine(*p); });
}
const char* emulated_error_norm(const double* partials, int64_t count, int64_t elements, void* out, int type) {
  return guarded([&] { error_norm(partials, count, elements, out, static_cast<Scalar>(type), nullptr); });
}

int64_t emulated_input_rows(const ConvProblem* p) { return input_rows(*p); }
const char* emulated_conv_prepare(const ConvPrepare* p) {
  return guarded([&] { conv_prepare(*p); });
}

void emulated_plan_stages(const ConvStages* p, StepsPlan* plan) { *plan = plan_stages(*p); }
const char* emulated_conv_stages(const ConvStages* p) {
  return guarded([&] { conv_stages(*p); });
}
void emulated_plan_steps(const ConvSteps* p, StepsPlan* plan) { *plan = plan_steps(*p); }
const char* emulated_conv_steps(const ConvSteps* p) {
  return guarded([&] { conv_steps(*p); });
}

void emulated_plan_solve(const ConvSolve* p, SolvePlan* plan) { *plan = plan_solve(*p); }
const char* emulated_conv_solve(const ConvSolve* p) {
  return guarded([&] { conv_solve(*p); });
}

void emulated_plan_solve_backward(const ConvSolveBackward* p, SolveBackwardPlan* plan) {
  *plan = plan_solve_backward(*p);
}
const char* emulated_conv_solve_backward(const ConvSolveBackward* p) {
  return guarded([&] { conv_solve_backward(*p); });
}

}  // extern "C"
