// Both passes over the first layers. Few channels make a convolution cheaper than what it reads and writes of its map, so
// that it is computed again wherever its result is needed, a unit at a time in the nearest cache, and never kept.
#include "cpu/conv/conv_stem.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "runtime/pool.h"

namespace contnet_fast {
namespace {

template <typename T>
class StemPass {
 public:
  StemPass(const StemSpec& spec, const ConvKernels<T>& kernels, const StemParameters<T>& p,
           const ImageBatch<const T>& x)
      : spec(spec), g(spec.map), taps(9 * spec.channels), kernels_(kernels), p_(p), x_(x) {
    weights_.resize(int64_t(taps) * g.padded);
    for (int c = 0; c < g.padded; ++c)
      for (int k = 0; k < taps; ++k) weights_.data()[int64_t(k) * g.padded + c] = p.weight[int64_t(c) * taps + k];
    vectors_.resize(2 * g.padded);
    partial.resize(items() * 2 * g.padded);
  }

  int64_t items() const { return spec.batch * g.units; }

  void set_norm(const T* moments) {
    norm_affine(p_.norm, g.padded, moments, vectors_.data(), vectors_.data() + g.padded);
  }

  // A unit of an image: its rows as a map of their own, and what is computed of them, in the memory of a thread.
  struct Unit {
    int64_t item, offset;  // of all maps
    int index;
    Geometry map;
    T *rows, *z, *grad;
  };

  // f(unit), with z = F(x) there, for items [first, last)
  template <typename F>
  void over(int64_t first, int64_t last, const F& f) const {
    const int64_t values = int64_t(spec.channels) * (g.unit_rows() + 2) * (g.width + 2);
    const int64_t rows = (values + 15) / 16 * 16;  // maps begin at a cache line
    const int64_t map = int64_t(g.unit_rows()) * g.width * g.padded;
    T* const scratch = thread_scratch<T>(rows + 2 * map);
    for (int64_t i = first; i < last; ++i) {
      const int64_t b = i / g.units;
      const int index = static_cast<int>(i % g.units);
      Unit unit{i, b * g.map() + int64_t(index) * map, index, g, scratch, scratch + rows, scratch + rows + map};
      unit.map.height = g.rows(index);
      unit.map.units = 1;
      kernels_.stem.rows(g, x_.at(b), spec.channels, index, unit.rows);
      kernels_.stem.conv(g, spec.channels, index, unit.rows, weights_.data(), unit.z);
      f(unit);
    }
  }
  template <typename F>
  void over_all(const F& f) const {
    at::parallel_for(0, items(), 1, [&](int64_t first, int64_t last) { over(first, last, f); });
  }

  // an operand of a unit to rows of a map
  void write(const Unit& unit, const Operand<T>& in, T* out) const {
    kernels_.write(unit.map, in, out, 0, unit.map.height);
  }
  Operand<T> normalised(const Unit& unit) const {
    Operand<T> in;
    in.map = unit.z, in.scale = vectors_.data(), in.shift = vectors_.data() + g.padded;
    return in;
  }
  void sum(const Unit& unit, const T* map, Result<T> sums) const {
    sums.partial = partial.data() + unit.item * 2 * g.padded;
    kernels_.sum(unit.map, map, sums, 0, {0, g.padded});
  }
  // the gradient of the norm's result, where the relu lets it through
  void fill_gradient(const Unit& unit, const T* grad) const {
    write(unit, normalised(unit), unit.grad);
    Operand<T> in;
    in.map = grad + unit.offset, in.other = unit.grad, in.mask_by_other = true;
    write(unit, in, unit.grad);
  }

  const StemSpec& spec;
  const Geometry& g;
  const int taps;
  Buffer<T> partial;  // [units of the batch][2][padded]

 private:
  const ConvKernels<T>& kernels_;
  const StemParameters<T>& p_;
  const ImageBatch<const T>& x_;
  Buffer<T> weights_, vectors_;
};

}  // namespace

template <typename T>
void conv_stem(const StemSpec& spec, const ConvKernels<T>& kernels, const StemForward<T>& call) {
  StemPass<T> stem(spec, kernels, call.parameters, call.x);
  if (spec.batch_statistics) {
    stem.over_all([&](const auto& unit) {
      Result<T> sums;
      sums.sums = Sums::moments;
      stem.sum(unit, unit.z, sums);
    });
    batch_moments(stem.g, spec.batch, stem.partial.data(), spec.norm_eps, call.moments, call.statistics);
  } else {
    running_moments(call.parameters.norm, stem.g.padded, spec.norm_eps, call.moments);
  }
  stem.set_norm(call.moments);
  stem.over_all([&](const auto& unit) {
    Operand<T> in = stem.normalised(unit);
    in.relu = true;
    stem.write(unit, in, call.y + unit.offset);
  });
}

template <typename T>
void conv_stem_backward(const StemSpec& spec, const ConvKernels<T>& kernels, const StemBackward<T>& call) {
  StemPass<T> stem(spec, kernels, call.parameters, call.x);
  const Geometry& g = stem.g;
  const int padded = g.padded;
  stem.set_norm(call.moments);
  stem.over_all([&](const auto& unit) {
    stem.fill_gradient(unit, call.grad);
    Result<T> sums;
    sums.sums = Sums::gradient;
    sums.with = unit.z, sums.center = call.moments;
    stem.sum(unit, unit.grad, sums);
  });
  Buffer<T> memory(3 * padded);
  const Through<T> to{memory.data(), memory.data() + padded, memory.data() + 2 * padded};
  const double values = spec.batch_statistics ? static_cast<double>(spec.batch) * g.height * g.width : 0.0;
  through_batch_norm(call.parameters.norm, padded, call.moments, stem.partial.data(), stem.items(), values, to,
                     call.gamma_grad, call.beta_grad);
  if (!call.weight_grad) return;

  // parts depend on the shape alone, and so does the order of the sums
  const int64_t parts = std::min<int64_t>(stem.items(), 64), size = int64_t(stem.taps) * padded;
  Buffer<T> all(parts * size);
  std::fill_n(all.data(), parts * size, T(0));
  at::parallel_for(0, parts, 1, [&](int64_t from, int64_t end) {
    for (int64_t part = from; part < end; ++part)
      stem.over(stem.items() * part / parts, stem.items() * (part + 1) / parts, [&](const auto& unit) {
        stem.fill_gradient(unit, call.grad);
        Operand<T> in;
        in.map = unit.grad, in.scale = to.c0;
        in.other = unit.z, in.other_scale = to.c1;
        in.shift = to.c2;
        stem.write(unit, in, unit.grad);
        kernels.stem.gradient(g, spec.channels, unit.index, unit.rows, unit.grad, all.data() + part * size);
      });
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) all.data()[i] += all.data()[part * size + i];
  for (int c = 0; c < padded; ++c)
    for (int k = 0; k < stem.taps; ++k)
      call.weight_grad[int64_t(c) * stem.taps + k] = all.data()[int64_t(k) * padded + c];
}

template void conv_stem(const StemSpec&, const ConvKernels<float>&, const StemForward<float>&);
template void conv_stem(const StemSpec&, const ConvKernels<double>&, const StemForward<double>&);
template void conv_stem_backward(const StemSpec&, const ConvKernels<float>&, const StemBackward<float>&);
template void conv_stem_backward(const StemSpec&, const ConvKernels<double>&, const StemBackward<double>&);

}  // namespace contnet_fast
