// Both passes over half of a residual unit.
#include "cpu/conv/conv_unit.h"

#include "cpu/conv/conv_packed.h"
#include "cpu/conv/conv_ranges.h"
#include "cpu/conv/conv_weight_sums.h"

namespace contnet_fast {
namespace {

// What both passes know: weights in the domain of frequencies, and the norm as an affine function.
template <typename T>
struct Unit {
  const UnitSpec& spec;
  const Geometry& g;
  const ConvKernels<T>& kernels;
  const UnitParameters<T>& p;
  WholeBatch range;
  PackedAll<T> weights;
  Buffer<T> vectors, partial;
  T *scale, *shift, *gain;  // [padded]

  Unit(const UnitSpec& spec, const ConvKernels<T>& kernels, const UnitParameters<T>& parameters, bool both)
      : spec(spec), g(spec.map), kernels(kernels), p(parameters), range(spec.batch, spec.map) {
    static const TimeGrid at_once{1, {0}, {{{0, 1.0}}}};
    weights = pack_all(g, at_once, kernels, {p.weight}, &p.weight_id, both);
    vectors.resize(3 * g.padded);
    scale = vectors.data(), shift = scale + g.padded, gain = shift + g.padded;
    std::fill_n(gain, g.padded, static_cast<T>(spec.gain));
    partial.resize(spec.batch * partial_size());
  }

  int64_t partial_size() const { return int64_t(g.units) * 2 * g.padded; }

  void set_norm(const T* moments) {
    if (spec.normed) norm_affine(p.norm, g.padded, moments, scale, shift);
  }

  // image b of a map as the convolution sees it
  Operand<T> input(const T* x, int64_t b) const {
    Operand<T> in;
    in.map = x + b * g.map();
    in.relu = spec.relu_first;
    if (spec.normed) in.scale = scale, in.shift = shift;
    return in;
  }
};

template <typename T>
void find_moments(const Unit<T>& unit, const UnitForward<T>& call) {
  const UnitSpec& spec = unit.spec;
  const Geometry& g = unit.g;
  if (!spec.batch_statistics) return running_moments(unit.p.norm, g.padded, spec.norm_eps, call.moments);
  unit.range.over_images([&](int64_t b) {
    Result<T> sums;
    sums.sums = Sums::moments;
    sums.partial = unit.partial.data() + b * unit.partial_size();
    for (int u = 0; u < g.units; ++u) unit.kernels.sum(g, call.x + b * g.map(), sums, u, {0, g.padded});
  });
  batch_moments(g, spec.batch, unit.partial.data(), spec.norm_eps, call.moments, call.statistics);
}

}  // namespace

template <typename T>
void conv_unit(const UnitSpec& spec, const ConvKernels<T>& kernels, const UnitForward<T>& call) {
  // what backward needs of the weights is made with the rest, and found again
  Unit<T> unit(spec, kernels, call.parameters, call.backward_follows && call.parameters.weight_id.owner);
  const Geometry& g = unit.g;
  if (spec.normed) find_moments(unit, call);
  unit.set_norm(call.moments);
  unit.range.over_units([&](const Share& share) {
    convolve(kernels, g, share, [&](int64_t b, ConvJob<T>& job) {
      job.in = unit.input(call.x, b);
      job.weights = unit.weights[0]->transformed(0);
      Result<T>& r = job.result;
      r.bias = call.parameters.bias;
      r.relu = !spec.relu_first;
      if (call.kept) r.destination[r.destinations++].out = call.kept + b * g.map();
      Destination<T>& y = r.destination[r.destinations++];
      y.out = call.y + b * g.map();
      y.own = static_cast<T>(spec.gain);
      if (call.shortcut) y.add(call.shortcut + b * g.map(), T(1));
    });
  });
}

template <typename T>
void conv_unit_backward(const UnitSpec& spec, const ConvKernels<T>& kernels, const UnitBackward<T>& call) {
  Unit<T> unit(spec, kernels, call.parameters, true);
  const Geometry& g = unit.g;
  const int64_t map = g.map();
  const T* mean = call.moments;
  unit.set_norm(call.moments);
  WeightSums<T> sums(spec.batch, g, 1);
  sums.over_parts([&](int64_t part, const Share& share) {
    Operand<T> activations[kTogether];
    convolve(kernels, g, share, [&](int64_t b, ConvJob<T>& job) {
      job.in.map = call.grad + b * map;
      job.in.scale = unit.gain;
      if (!spec.relu_first) job.in.other = call.kept + b * map, job.in.mask_by_other = true;
      job.weights = unit.weights[0]->backward(0);
      Operand<T>& activation = activations[b - share.image] = unit.input(call.x, b);
      if (call.weight_grad) job.activation = &activation, job.weight_grad = sums.weights(part, 0);
      if (call.bias_grad) job.bias_grad = sums.bias(part, 0);
      Result<T>& r = job.result;
      r.destinations = 1;
      r.destination[0].out = call.x_grad + b * map;
      if (spec.relu_first) r.mask = call.x + b * map, r.mask_scale = activation.scale, r.mask_shift = activation.shift;
      if (!spec.normed) return;
      r.sums = Sums::gradient;
      r.with = call.x + b * map;
      r.center = mean;
      r.partial = unit.partial.data() + b * unit.partial_size();
    });
  });
  sums.merge();
  if (call.weight_grad)
    over_output_channels(g, 1, [&](int64_t, Channels channels) {
      T* const taps = thread_scratch<T>(int64_t(9) * g.channels * g.padded);
      kernels.unpack(g, channels, sums.weights(0, 0), call.weight_grad, taps);
    });
  if (call.bias_grad) std::copy_n(sums.bias(0, 0), g.padded, call.bias_grad);
  if (!spec.normed) return;

  Buffer<T> memory(3 * g.padded);
  const Through<T> to{memory.data(), memory.data() + g.padded, memory.data() + 2 * g.padded};
  const double values = spec.batch_statistics ? static_cast<double>(spec.batch) * g.height * g.width : 0.0;
  through_batch_norm(unit.p.norm, g.padded, mean, unit.partial.data(), spec.batch * g.units, values, to,
                     call.gamma_grad, call.beta_grad);
  unit.range.over_images([&](int64_t b) {
    Operand<T> in;
    in.map = call.x_grad + b * map, in.scale = to.c0;
    in.other = call.x + b * map, in.other_scale = to.c1;
    in.shift = to.c2;
    kernels.write(g, in, call.x_grad + b * map, 0, g.height);
  });
}

template void conv_unit(const UnitSpec&, const ConvKernels<float>&, const UnitForward<float>&);
template void conv_unit(const UnitSpec&, const ConvKernels<double>&, const UnitForward<double>&);
template void conv_unit_backward(const UnitSpec&, const ConvKernels<float>&, const UnitBackward<float>&);
template void conv_unit_backward(const UnitSpec&, const ConvKernels<double>&, const UnitBackward<double>&);

}  // namespace contnet_fast
