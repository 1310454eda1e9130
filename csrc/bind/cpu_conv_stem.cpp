// Registers the C++ implementation of the first layers of a network: tensors in, plain descriptions out.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bind/cpu_geometry.h"
#include "bind/layer_arguments.h"
#include "cpu/conv/choose_kernels.h"
#include "cpu/conv/conv_stem.h"
#include "runtime/runs.h"

namespace contnet_fast {
namespace {

constexpr const char *kStem = "conv_stem_cpu", *kStemBackward = "conv_stem_backward_cpu";

// Tensors with gradients, in the order of the schema.
enum StemPlace { kStemX, kStemWeight, kStemNormWeight, kStemNormBias };

// The arguments of both ops, checked; the images in any strides, parameters contiguous.
struct StemArguments {
  StemSpec spec{};
  at::Tensor x, weight;
  NormArguments norm;
  int64_t channels;

  StemArguments(const char* op, const at::Tensor& given_x, const at::Tensor& given_weight,
                const OptionalTensor* (&&given_norm)[kNormTensors], bool batch_statistics, double norm_eps)
      : x(given_x.resolve_neg()), norm(op, given_x, channels_of(op, given_x, given_weight), given_norm) {
    channels = given_weight.size(0);
    weight = parameter(op, given_weight, x, 9 * x.size(1) * channels, "weight");
    spec.batch = x.size(0);
    spec.map = geometry(x.size(2), x.size(3), channels);
    spec.channels = x.size(1);
    spec.batch_statistics = batch_statistics;
    spec.norm_eps = norm_eps;
    TORCH_CHECK(batch_statistics || norm.has_statistics(), op, ": a norm without statistics");
  }

  static int64_t channels_of(const char* op, const at::Tensor& x, const at::Tensor& weight) {
    check_state(op, x);
    TORCH_CHECK(weight.dim() == 4 && padded_channels(static_cast<int>(weight.size(0))) == weight.size(0), op,
                ": weight of shape ", weight.sizes(), ", accepted: [4, 8 or a multiple of 16, channels, 3, 3]");
    return weight.size(0);
  }
  std::vector<int64_t> sizes() const { return {x.size(0), channels, x.size(2), x.size(3)}; }
  template <typename T>
  StemParameters<T> parameters() const {
    return {data_or_null<T>(weight), norm.pointers<T>()};
  }
};

// y, statistics [2, C] of the batch or none, moments [2, C]
std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& x, const at::Tensor& weight,
                                                       const OptionalTensor& norm_weight,
                                                       const OptionalTensor& norm_bias, const OptionalTensor& mean,
                                                       const OptionalTensor& var, bool batch_statistics,
                                                       double norm_eps) {
  record("conv_stem", "cpu", "stage");
  const StemArguments a(kStem, x, weight, {&norm_weight, &norm_bias, &mean, &var}, batch_statistics, norm_eps);
  const at::Tensor y = at::empty(a.sizes(), x.options().memory_format(at::MemoryFormat::ChannelsLast));
  const at::Tensor statistics = at::empty({batch_statistics ? 2 : 0, a.channels}, x.options());
  const at::Tensor moments = at::empty({2, a.channels}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kStem, [&] {
    StemForward<scalar_t> call{};
    call.parameters = a.parameters<scalar_t>();
    call.x = images<const scalar_t>(a.x, a.x.const_data_ptr<scalar_t>());
    call.y = y.mutable_data_ptr<scalar_t>();
    call.moments = moments.mutable_data_ptr<scalar_t>();
    call.statistics = statistics.mutable_data_ptr<scalar_t>();
    conv_stem(a.spec, choose_kernels<scalar_t>(a.spec.map), call);
  });
  return {y, statistics, moments};
}

std::vector<at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                 const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                                 const OptionalTensor& mean, const OptionalTensor& var, bool batch_statistics,
                                 double norm_eps, const at::Tensor& moments, at::IntArrayRef wanted) {
  record("conv_stem_backward", "cpu", "stage");
  const StemArguments a(kStemBackward, x, weight, {&norm_weight, &norm_bias, &mean, &var}, batch_statistics, norm_eps);
  TORCH_CHECK(grad.sizes() == a.sizes() && grad.scalar_type() == x.scalar_type(), kStemBackward, ": grad of shape ",
              grad.sizes(), " in ", grad.scalar_type());
  TORCH_CHECK(moments.numel() == 2 * a.channels && moments.is_contiguous(), kStemBackward, ": moments of shape ",
              moments.sizes());
  const at::Tensor upstream = channels_last(grad);
  const LayerGradients gradients(kStemBackward, {{}, a.weight, a.norm.tensors[kNormWeight], a.norm.tensors[kNormBias]},
                                 wanted);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kStemBackward, [&] {
    StemBackward<scalar_t> call{};
    call.parameters = a.parameters<scalar_t>();
    call.x = images<const scalar_t>(a.x, a.x.const_data_ptr<scalar_t>());
    call.moments = moments.const_data_ptr<scalar_t>();
    call.grad = upstream.const_data_ptr<scalar_t>();
    call.weight_grad = gradients.data<scalar_t>(kStemWeight);
    call.gamma_grad = gradients.data<scalar_t>(kStemNormWeight);
    call.beta_grad = gradients.data<scalar_t>(kStemNormBias);
    conv_stem_backward(a.spec, choose_kernels<scalar_t>(a.spec.map), call);
  });
  return gradients.all();
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl(contnet_fast::kStem, TORCH_FN(contnet_fast::forward));
  m.impl(contnet_fast::kStemBackward, TORCH_FN(contnet_fast::backward));
}
