// Data gradients of convolutions with 16-bit operands, and what of a pass any of them take.

#include "cuda/conv/backward/conv_gradient.h"

namespace contnet_fast::cuda {
namespace {

const unsigned char* bytes(const void* p) { return static_cast<const unsigned char*>(p); }

}  // namespace

void conv_gradient_half(const ConvGradient& p, Scalar operand, void* stream) {
  return operand == Scalar::bf16 ? launch_gradient<bf16, true>(p, stream) : launch_gradient<f16, true>(p, stream);
}

int32_t gradient_blocks(const Pass& p) { return plan_data_gradient(p).blocks; }

void data_gradient(const Pass& p, const DataGradient& g) {
  const int64_t c = p.channels, matrix = 9 * c * c * (p.operand == Scalar::f32 ? 4 : 2);
  const int slot = p.slot_list[g.evaluation];
  ConvGradient a{};
  a.band = plan_data_gradient(p);
  a.packed = bytes(g.packed) + (int64_t{g.conv} * p.slots + slot) * matrix;
  a.source = bytes(g.grad);
  a.value = bytes(g.value);
  a.target = static_cast<unsigned char*>(g.target);
  a.parameters = p.parameters + int64_t{slot} * kParameterRows * c;
  if (g.norm >= 0) a.moments = p.moments + (int64_t{2} * g.evaluation + g.norm) * 2 * c;
  if (g.sums != nullptr) a.sums = g.sums;
  a.source_type = p.operand;
  a.value_type = p.state;
  a.target_type = g.target_type;
  a.norm = g.norm;
  a.mask = p.post == 0;
  a.scaled = p.post == 0 && p.skip != 0 && g.conv == 1;
  a.fold = p.post == 0 && p.norm != Norm::batch;
  a.norm_eps = p.norm_eps;
  if (p.operand == Scalar::f32) return conv_gradient_f32(a, p.tf32 != 0, p.stream);
  return conv_gradient_half(a, p.operand, p.stream);
}

}  // namespace contnet_fast::cuda
