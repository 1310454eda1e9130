// The pointwise parts of the backward pass: through norms, and through the Runge-Kutta combinations.
//
// A block takes a run of pixels of the batch; a thread eight channels of some of them, the same throughout.

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/columns.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256;

struct NormArguments {
  Global<const float> sums, parameters, moments;
  int norm, evaluation, slot, rows;
  float count, norm_eps;
};

struct Pixels {
  int channels, each;
  int64_t count;
  template <typename F>
  DEVICE void each_eight(F f) const {  // f(index of eight values, first channel)
    const int across = channels / 8, v = thread_index() % across, step = kThreads / across;
    if (thread_index() >= step * across) return;
    const int64_t first = static_cast<int64_t>(block_index()) * each,
                  last = first + each < count ? first + each : count;
    for (int64_t pixel = first + thread_index() / across; pixel < last; pixel += step)
      f(pixel * channels + 8 * v, 8 * v);
  }
};

// Per channel in shared memory: weight, mean, 1 / deviation, and the means of g and g * normalised, g = weight *
// gradient.
struct NormTerms {
  static constexpr int kRows = 5;
  int channels;

  DEVICE Shared<float> row(int i) const { return shared_array<float>(4 * i * channels, channels); }
  DEVICE Shared<float> scratch() const {
    return shared_array<float>(4 * kRows * channels, column_scratch(kThreads, channels / 2, 4));
  }

  DEVICE void fill(const NormArguments& n) const {
    const int c = channels;
    for (int i = thread_index(); i < c; i += kThreads) {
      const Global<const float> moments = n.moments + ((n.evaluation * 2 + n.norm) * 2 * c + i);
      row(0)[i] = n.parameters[(n.slot * kParameterRows + 2 + 2 * n.norm) * c + i];
      row(1)[i] = moments[0];
      row(2)[i] = reciprocal_deviation(moments[c], n.norm_eps);
    }
    add_rows(n.sums, n.rows, 3 * c, Columns(c / 2), scratch());
    for (int i = thread_index(); i < 2 * c; i += kThreads)
      row(3 + i / c)[i % c] = row(0)[i % c] * scratch()[i] / n.count;
    sync_threads();
  }

  // the gradient by the norm's input
  DEVICE float through(float grad, float value, int c) const {
    const float deviation = row(2)[c], normalised = (value - row(1)[c]) * deviation;
    return deviation * (row(0)[c] * grad - row(3)[c] - normalised * row(4)[c]);
  }
};

struct NormGradientArguments {
  NormArguments norm;
  Pixels pixels;
  Global<const unsigned char> grad, value;
  Global<unsigned char> target;
  Scalar grad_type, value_type, target_type;
  bool mask, scaled;
};

KERNEL_MIN_BLOCKS(kThreads, 3)
through_norm(GRID_CONSTANT NormGradientArguments p) {
  const NormTerms terms{p.pixels.channels};
  if (p.norm.norm >= 0) terms.fill(p.norm);
  const float factor =
      p.scaled ? float(p.norm.parameters[(p.norm.slot * kParameterRows + kRowSkip) * p.pixels.channels]) : 1.f;
  p.pixels.each_eight([&](int64_t at, int c) {
    float grad[8], value[8];
    load_values<8>(grad, p.grad, p.grad_type, at);
    load_values<8>(value, p.value, p.value_type, at);
    UNROLL
    for (int j = 0; j < 8; ++j) {
      if (p.norm.norm >= 0) grad[j] = terms.through(grad[j], value[j], c + j);
      grad[j] *= factor;
      if (p.mask && !(value[j] > 0.f)) grad[j] = 0.f;
    }
    store_values<8>(grad, p.target, p.target_type, at);
  });
}

struct StageArguments {
  NormArguments norm;
  Pixels pixels;
  Global<const unsigned char> grad, value, costate, upstream;
  Global<unsigned char> inputs, target;
  Scalar type, target_type;
  int stage, stages;
  float own, costate_weight, terms[kMostStages];
};

KERNEL_MIN_BLOCKS(kThreads, 3)
through_stage(GRID_CONSTANT StageArguments p) {
  const NormTerms terms{p.pixels.channels};
  if (p.norm.rows > 0) terms.fill(p.norm);
  const int64_t plane = p.pixels.count * p.pixels.channels;
  p.pixels.each_eight([&](int64_t at, int c) {
    float grad[8], other[8], total[8];
    load_values<8>(grad, p.grad, p.type, at);
    if (p.norm.rows > 0) {
      load_values<8>(other, p.value, p.type, at);
      UNROLL
      for (int j = 0; j < 8; ++j) grad[j] = terms.through(grad[j], other[j], c + j);
    }
    UNROLL
    for (int j = 0; j < 8; ++j) total[j] = p.own != 0.f ? p.own * grad[j] : 0.f;
    if (p.stage > 0) store_values<8>(grad, p.inputs, p.type, p.stage * plane + at);
    const auto add = [&](Global<const unsigned char> map, int64_t i, float weight) {
      if (weight == 0.f) return;  // adds nothing, not even NaN
      load_values<8>(other, map, p.type, i);
      UNROLL
      for (int j = 0; j < 8; ++j) total[j] += weight * other[j];
    };
    add(p.costate, at, p.costate_weight);
    if (p.upstream) add(p.upstream, at, 1.f);
    for (int r = p.stage + 1; r < p.stages; ++r) add(p.inputs, r * plane + at, p.terms[r]);
    store_values<8>(total, p.target, p.target_type, at);
  });
}

struct RateArguments {
  NormArguments norm;
  Pixels pixels;
  Global<const unsigned char> grad, value;
  Global<unsigned char> target;
  Global<float> sums;
  Scalar grad_type, value_type, target_type;
  float factor;
};

KERNEL(kThreads)
scale_rate(GRID_CONSTANT RateArguments p) {
  const int c = p.pixels.channels, across = c / 8;
  float plain[8] = {}, product[8] = {};
  p.pixels.each_eight([&](int64_t at, int channel) {
    float grad[8], value[8];
    load_values<8>(grad, p.grad, p.grad_type, at);
    UNROLL
    for (int j = 0; j < 8; ++j) grad[j] *= p.factor;
    if (p.sums) load_values<8>(value, p.value, p.value_type, at);
    UNROLL
    for (int j = 0; p.sums && j < 8; ++j) {
      if (p.norm.norm >= 0) {
        const Global<const float> moments =
            p.norm.moments + ((p.norm.evaluation * 2 + p.norm.norm) * 2 * c + channel + j);
        value[j] = (value[j] - moments[0]) * reciprocal_deviation(moments[c], p.norm.norm_eps);
      }
      plain[j] += grad[j];
      product[j] += grad[j] * value[j];
    }
    store_values<8>(grad, p.target, p.target_type, at);
  });
  if (!p.sums) return;
  const Shared<float> parts = shared_array<float>(0, 16 * kThreads);
  UNROLL
  for (int j = 0; j < 8; ++j) {
    parts[16 * thread_index() + j] = plain[j];
    parts[16 * thread_index() + 8 + j] = product[j];
  }
  sync_threads();
  for (int column = thread_index(); column < 2 * c; column += kThreads) {
    const int channel = column % c, which = column / c;
    float sum = 0.f;
    for (int other = channel / 8; other < kThreads / across * across; other += across)
      sum += parts[16 * other + 8 * which + channel % 8];
    for (int row = which; row < (which == 0 ? 1 : 3); ++row) p.sums[(block_index() * 3 + row) * c + channel] = sum;
  }
}

Pixels pixels_of(const Pass& p) {
  const int64_t count = static_cast<int64_t>(p.images) * p.height * p.width, blocks = 2 * p.processors;
  const int64_t least = kThreads / (p.channels / 8), each = (count + blocks - 1) / blocks;
  return {p.channels, static_cast<int>(each < least ? least : each), count};
}

NormArguments norm_of(const Pass& p, const NormSums& n) {
  NormArguments a{};
  if (n.rows > 0) a.sums = n.sums;
  a.parameters = p.parameters;
  if (p.norm != Norm::none) a.moments = p.moments;
  a.norm = n.norm;
  a.evaluation = n.evaluation;
  a.slot = n.slot;
  a.rows = n.rows;
  a.count = static_cast<float>(static_cast<int64_t>(p.images) * p.height * p.width);
  a.norm_eps = p.norm_eps;
  return a;
}

Grid grid_of(const Pass& p, const char* name, int64_t shared) {
  return {name, pointwise_blocks(p), kThreads, shared, 1, p.stream};
}

int64_t term_bytes(const Pass& p) {
  return 4 * (NormTerms::kRows * p.channels + column_scratch(kThreads, p.channels / 2, 4));
}

const unsigned char* bytes(const void* p) { return static_cast<const unsigned char*>(p); }
unsigned char* bytes(void* p) { return static_cast<unsigned char*>(p); }

}  // namespace

int32_t pointwise_blocks(const Pass& p) {
  const Pixels pixels = pixels_of(p);
  return static_cast<int32_t>((pixels.count + pixels.each - 1) / pixels.each);
}

void norm_gradient(const Pass& p, const NormGradient& g) {
  const NormGradientArguments a{norm_of(p, g), pixels_of(p), bytes(g.grad.data), bytes(g.value.data), bytes(g.target),
                                g.grad.type,   g.value.type, p.operand,          g.mask != 0,         g.scaled != 0};
  launch(grid_of(p, "norm_gradient", term_bytes(p)), through_norm, a);
}

void stage_gradient(const Pass& p, const StageGradient& g) {
  StageArguments a{norm_of(p, g),     pixels_of(p),    bytes(g.grad),   bytes(g.value),   bytes(g.costate),
                   bytes(g.upstream), bytes(g.inputs), bytes(g.target), p.state,          g.target_type,
                   g.stage,           p.stages,        g.own,           g.costate_weight, {}};
  for (int s = 0; s < p.stages; ++s) a.terms[s] = g.terms[s];
  launch(grid_of(p, "stage_gradient", term_bytes(p)), through_stage, a);
}

void rate_gradient(const Pass& p, const RateGradient& g) {
  const NormSums none{g.norm, g.evaluation, 0, 0, nullptr};
  const RateArguments a{norm_of(p, none), pixels_of(p), bytes(g.grad.data), bytes(g.value), bytes(g.target), g.sums,
                        g.grad.type,      p.state,      p.operand,          g.factor};
  launch(grid_of(p, "rate_gradient", 4 * 16 * kThreads), scale_rate, a);
}

}  // namespace contnet_fast::cuda
