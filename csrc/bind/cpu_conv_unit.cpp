// Registers the C++ implementation of half of a residual unit: tensors in, plain descriptions out.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bind/cpu_geometry.h"
#include "bind/layer_arguments.h"
#include "bind/schema_arguments.h"
#include "bind/weight_id.h"
#include "cpu/conv/choose_kernels.h"
#include "cpu/conv/conv_unit.h"
#include "runtime/runs.h"
#include "runtime/working_tensor.h"

namespace contnet_fast {
namespace {

constexpr const char *kUnit = "conv_unit_cpu", *kUnitBackward = "conv_unit_backward_cpu";

// Tensors with gradients, in the order of the schema.
enum UnitPlace { kUnitX, kUnitWeight, kUnitBias, kUnitNormWeight, kUnitNormBias };

struct UnitSettings {
  bool normed, batch_statistics;
  double norm_eps;
  bool relu_first;
  double gain;
  const std::string& products;
};

// The arguments of both ops, checked; maps in channels_last, parameters contiguous.
struct UnitArguments {
  UnitSpec spec{};
  const char* op;
  at::Tensor x, weight, bias;
  NormArguments norm;
  WeightId weight_id;

  UnitArguments(const char* op, const at::Tensor& given_x, const at::Tensor& given_weight,
                const OptionalTensor& given_bias, const OptionalTensor* (&&given_norm)[kNormTensors],
                const UnitSettings& s)
      : op(op), norm(op, given_x, channels_of(op, given_x), given_norm) {
    const int64_t channels = given_x.size(1);
    x = channels_last(given_x);
    weight = parameter(op, given_weight, x, 9 * channels * channels, "weight");
    weight_id = id_of_weight(given_weight, weight);
    if (given_bias.has_value()) bias = parameter(op, *given_bias, x, channels, "bias");
    spec.batch = x.size(0);
    spec.map = choose_geometry(op, x, read_word(op, "products", s.products, kProducts));
    TORCH_CHECK(spec.map.padded == channels, op, ": ", channels, " channels with products in ", s.products);
    spec.normed = s.normed;
    spec.batch_statistics = s.batch_statistics;
    spec.relu_first = s.relu_first;
    spec.norm_eps = s.norm_eps;
    spec.gain = s.gain;
    TORCH_CHECK(!spec.normed || s.batch_statistics || norm.has_statistics(), op, ": a norm without statistics");
    TORCH_CHECK(spec.normed || !s.batch_statistics, op, ": batch statistics without a norm");
  }

  static int64_t channels_of(const char* op, const at::Tensor& x) {
    check_state(op, x);
    TORCH_CHECK(padded_channels(static_cast<int>(x.size(1))) == x.size(1), op, ": x of shape ", x.sizes(),
                ", accepted: [batch, 4, 8 or a multiple of 16, height, width]");
    return x.size(1);
  }
  at::Tensor map(const at::Tensor& t, const char* name) const {
    TORCH_CHECK(t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type(), op, ": ", name, " of shape ", t.sizes(),
                " in ", t.scalar_type());
    return channels_last(t);
  }
  template <typename T>
  UnitParameters<T> parameters() const {
    return {data_or_null<T>(weight), data_or_null<T>(bias), norm.pointers<T>(), weight_id};
  }
};

// y, statistics [2, C] of the batch or none, moments [2, C] or none, F(x) like x where backward reads it and y is another
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm_weight,
    const OptionalTensor& norm_bias, const OptionalTensor& mean, const OptionalTensor& var,
    const OptionalTensor& shortcut, bool normed, bool batch_statistics, double norm_eps, bool relu_first, double gain,
    std::string products, bool keep) {
  record("conv_unit", "cpu", "stage");
  const UnitArguments a(kUnit, x, weight, bias, {&norm_weight, &norm_bias, &mean, &var},
                        {normed, batch_statistics, norm_eps, relu_first, gain, products});
  const at::Tensor base = shortcut.has_value() ? a.map(*shortcut, "shortcut") : at::Tensor();
  const int64_t channels = x.size(1);
  const at::Tensor y = at::empty_like(a.x);
  const at::Tensor statistics = at::empty({batch_statistics ? 2 : 0, channels}, x.options());
  const at::Tensor moments = at::empty({a.spec.normed ? 2 : 0, channels}, x.options());
  const bool other = shortcut.has_value() || gain != 1.0;
  const at::Tensor kept = keep && !relu_first && other ? working_tensor(a.x.sizes(), a.x.strides(), a.x.scalar_type())
                                                       : at::empty({0}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kUnit, [&] {
    UnitForward<scalar_t> call{};
    call.parameters = a.parameters<scalar_t>();
    call.x = data_or_null<scalar_t>(a.x), call.shortcut = data_or_null<scalar_t>(base);
    call.y = y.mutable_data_ptr<scalar_t>();
    call.moments = moments.mutable_data_ptr<scalar_t>();
    call.statistics = statistics.mutable_data_ptr<scalar_t>();
    call.backward_follows = keep;
    call.kept = kept.numel() > 0 ? kept.mutable_data_ptr<scalar_t>() : nullptr;
    conv_unit(a.spec, choose_kernels<scalar_t>(a.spec.map), call);
  });
  return {y, statistics, moments, kept};
}

std::vector<at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& norm_weight,
                                 const OptionalTensor& norm_bias, const OptionalTensor& mean, const OptionalTensor& var,
                                 bool normed, bool batch_statistics, double norm_eps, bool relu_first, double gain,
                                 std::string products, const at::Tensor& moments, const at::Tensor& kept,
                                 at::IntArrayRef wanted) {
  record("conv_unit_backward", "cpu", "stage");
  const UnitArguments a(kUnitBackward, x, weight, bias, {&norm_weight, &norm_bias, &mean, &var},
                        {normed, batch_statistics, norm_eps, relu_first, gain, products});
  const at::Tensor upstream = a.map(grad, "grad");
  TORCH_CHECK(moments.numel() == (a.spec.normed ? 2 * x.size(1) : 0) && moments.is_contiguous(), kUnitBackward,
              ": moments of shape ", moments.sizes());
  TORCH_CHECK(relu_first || (kept.sizes() == x.sizes() && kept.strides() == a.x.strides()), kUnitBackward,
              ": what forward kept, of shape ", kept.sizes());
  LayerGradients gradients(kUnitBackward,
                           {a.x, a.weight, a.bias, a.norm.tensors[kNormWeight], a.norm.tensors[kNormBias]}, wanted);
  gradients.add(kUnitX);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), kUnitBackward, [&] {
    UnitBackward<scalar_t> call{};
    call.parameters = a.parameters<scalar_t>();
    call.x = data_or_null<scalar_t>(a.x), call.moments = data_or_null<scalar_t>(moments),
    call.kept = data_or_null<scalar_t>(kept);
    call.grad = data_or_null<scalar_t>(upstream);
    call.x_grad = gradients.data<scalar_t>(kUnitX);
    call.weight_grad = gradients.data<scalar_t>(kUnitWeight);
    call.bias_grad = gradients.data<scalar_t>(kUnitBias);
    call.gamma_grad = gradients.data<scalar_t>(kUnitNormWeight);
    call.beta_grad = gradients.data<scalar_t>(kUnitNormBias);
    conv_unit_backward(a.spec, choose_kernels<scalar_t>(a.spec.map), call);
  });
  return gradients.all();
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl(contnet_fast::kUnit, TORCH_FN(contnet_fast::forward));
  m.impl(contnet_fast::kUnitBackward, TORCH_FN(contnet_fast::backward));
}
