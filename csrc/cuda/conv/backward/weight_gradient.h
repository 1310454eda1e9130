// Gradients of 3x3 convolutions by their weights: for each tap the product operand^T x gradient, over pixels.
//
// A block takes a run of tiles of pixels, I input and O output channels of one convolution of one stage. The operand
// lies in shared memory with its border, made from the tape by norm and relu as it is written; the nine taps are shifts
// of one another. Both operands of the product are stored [pixel][channel] and read by ldmatrix.trans. Sums over the
// block's pixels stay in registers; warps that share them are added up in order at the end.
#pragma once

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/columns.h"
#include "cuda/conv/plan/weight_plan.h"
#include "cuda/lib/fragments.h"

namespace contnet_fast::cuda {
namespace {

template <typename T>
struct WeightArguments {
  Global<const unsigned char> tape, grads;
  Global<const float> parameters, moments;
  Global<const int32_t> slot_of;
  Global<float> weight_sums, bias_sums;
  Scalar state, operand;
  bool post, normed;
  int height, width, channels, stages, first, splits, units, units_per_split;
  int rows, cols, tiles_x, tiles_y;  // of a tile in pixels; tiles of an image
  int depth;                         // pixels of a tile as the product takes them: whole sixteens
  int blocks_i, blocks_o;
  int biases, places, tile, gradient;  // bytes before an array of shared memory; the first are the norms
  int64_t plane, kind_distance;        // values
  float norm_eps;
};

template <typename T, bool TENSOR, int I, int O>
struct WeightBlock {
  static constexpr WeightTile kOf{I, O};
  static constexpr int kTaps = kOf.taps(), M = kOf.m(), N = kOf.n(), kShares = kOf.shares(), kPixel = kOf.pixel();
  static constexpr int kRow = kOf.row(), kThreads = 32 * kOf.warps(), kStep = sizeof(T) == 2 ? 16 : TENSOR ? 8 : 1;
  using Totals = float[kTaps][M][N][4];

  const WeightArguments<T>& p;
  int stage, conv, first_i, first_o;

  DEVICE explicit WeightBlock(const WeightArguments<T>& p) : p(p) {
    const int block = block_row();
    first_o = block % p.blocks_o * O;
    first_i = block / p.blocks_o % p.blocks_i * I;
    conv = block / (p.blocks_o * p.blocks_i) % 2;
    stage = block / (p.blocks_o * p.blocks_i * 2);
  }

  // of the warp
  DEVICE int share() const { return warp_index() % kShares; }
  DEVICE int first_tap() const { return warp_index() / kShares % (9 / kTaps) * kTaps; }
  DEVICE int warp_i() const { return warp_index() / (kShares * (9 / kTaps)) * (16 * M); }

  DEVICE Shared<int> places() const { return shared_array<int>(p.places, p.depth); }
  DEVICE Shared<T> tile() const { return shared_array<T>(p.tile, (p.rows + 2) * (p.cols + 2) * kPixel); }
  DEVICE Shared<T> gradient() const { return shared_array<T>(p.gradient, p.depth * kRow); }
  DEVICE Shared<float> norms() const { return shared_array<float>(0, 2 * I); }
  DEVICE Shared<float> biases() const { return shared_array<float>(p.biases, 8 * kThreads); }  // a thread's are its own
  DEVICE Shared<float> parts() const { return shared_array<float>(p.tile, 9 * I * O); }

  // which norm makes the operand, or -1
  DEVICE int norm() const { return !p.normed || (p.post && conv == 0) ? -1 : p.post ? 0 : conv; }

  // where the product's pixels lie in the tile at the first tap; scale and shift of the norm; no biases yet
  DEVICE void begin() const {
    UNROLL
    for (int j = 0; j < 8; ++j) biases()[8 * thread_index() + j] = 0.f;
    for (int k = thread_index(); k < p.depth; k += kThreads)
      places()[k] = k < p.rows * p.cols ? (k / p.cols * (p.cols + 2) + k % p.cols) * kPixel : 0;
    const int n = norm(), c = thread_index(), channel = first_i + c;
    if (c >= I) return;
    float scale = 1.f, shift = 0.f;
    if (n >= 0 && channel < p.channels) {
      const int evaluation = p.first + stage, slot = p.slot_of[evaluation];
      const Global<const float> row = p.parameters + ((slot * kParameterRows + weight_row(n)) * p.channels + channel);
      const Global<const float> moments = p.moments + ((evaluation * 2 + n) * 2 * p.channels + channel);
      scale = row[0] * reciprocal_deviation(moments[p.channels], p.norm_eps);
      shift = row[p.channels] - moments[0] * scale;
    }
    norms()[c] = scale;
    norms()[I + c] = shift;
  }

  // the operand of a tile of pixels that begins at (top, left), with its border
  DEVICE void load_operand(int64_t image, int top, int left) const {
    constexpr int kAcross = I / 8;
    const int v = thread_index() % kAcross, channel = first_i + 8 * v, wide = p.cols + 2;
    const bool exists = channel < p.channels, normed = norm() >= 0;
    const int64_t base = conv * p.kind_distance + stage * p.plane + image + channel;
    for (int pixel = thread_index() / kAcross; pixel < (p.rows + 2) * wide; pixel += kThreads / kAcross) {
      const int y = top + pixel / wide - 1, x = left + pixel % wide - 1;
      float value[8] = {};
      if (exists && y >= 0 && y < p.height && x >= 0 && x < p.width) {
        load_values<8>(value, p.tape, p.state, base + static_cast<int64_t>(y * p.width + x) * p.channels);
        const int of = afresh(8 * v);  // registers are for the sums
        UNROLL
        for (int j = 0; j < 8; ++j) {
          if (normed) value[j] = value[j] * norms()[of + j] + norms()[I + of + j];
          if (!p.post) value[j] = relu(value[j]);
        }
      }
      store_operands<T, TENSOR>(value, tile(), pixel * kPixel + 8 * v);
    }
  }

  DEVICE void load_gradient(int64_t image, int top, int left) const {
    constexpr int kAcross = O / 8;
    const int v = thread_index() % kAcross, channel = first_o + 8 * v;
    float bias[8];
    UNROLL
    for (int j = 0; j < 8; ++j) bias[j] = biases()[8 * thread_index() + j];
    const int64_t base = (conv * p.stages + stage) * p.plane + image + channel;
    for (int k = thread_index() / kAcross; k < p.depth; k += kThreads / kAcross) {
      const int y = top + k / p.cols, x = left + k % p.cols;
      float value[8] = {};
      if (channel < p.channels && k < p.rows * p.cols && y < p.height && x < p.width)
        load_values<8>(value, p.grads, p.operand, base + static_cast<int64_t>(y * p.width + x) * p.channels);
      UNROLL
      for (int j = 0; j < 8; ++j) bias[j] += value[j];
      store_operands<T, TENSOR>(value, gradient(), k * kRow + 8 * v);
    }
    UNROLL
    for (int j = 0; j < 8; ++j) biases()[8 * thread_index() + j] = bias[j];
  }

  // totals += the products of the pixels of one step of the depth
  DEVICE void multiply(Totals& v, int k) const {
    const int lane = lane_index(), g = lane / 4, t = lane % 4, i = warp_i();
    if constexpr (!TENSOR) {
      const int at = places()[k] + i + g;
      Vector<float, 2> b[N];
      UNROLL
      for (int n = 0; n < N; ++n) b[n] = load<2>(gradient(), k * kRow + 8 * n + 2 * t);
      each_tap([&](int tap, int shift) {
        UNROLL
        for (int r = 0; r < 2 * M; ++r) {
          multiply_half<N>(v[tap][r / 2], r % 2, tile()[at + shift + 8 * r], b);
        }
      });
    } else if constexpr (sizeof(T) == 2) {
      const int at = places()[k + lane / 16 * 8 + lane % 8] + i + lane / 8 % 2 * 8;
      uint32_t b[N][2];
      UNROLL
      for (int n = 0; n < N; n += 2) {
        uint32_t r[4];
        ldmatrix_trans<4>(r, gradient() + ((k + lane % 16) * kRow + 8 * n + lane / 16 * 8));
        UNROLL
        for (int j = 0; j < 4; ++j) b[n + j / 2][j % 2] = r[j];
      }
      each_tap([&](int tap, int shift) {
        UNROLL
        for (int m = 0; m < M; ++m) {
          uint32_t a[4];
          ldmatrix_trans<4>(a, tile() + (at + shift + 16 * m));
          multiply_row<T>(v[tap][m], a, b);
        }
      });
    } else {
      const int at[2] = {places()[k + t] + i + g, places()[k + t + 4] + i + g};
      uint32_t b[N][2];
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int j = 0; j < 2; ++j) b[n][j] = bit_cast<uint32_t>(float(gradient()[(k + t + 4 * j) * kRow + 8 * n + g]));
      }
      each_tap([&](int tap, int shift) {
        UNROLL
        for (int m = 0; m < M; ++m) {
          uint32_t a[4];
          UNROLL
          for (int j = 0; j < 4; ++j) a[j] = bit_cast<uint32_t>(float(tile()[at[j / 2] + shift + 16 * m + j % 2 * 8]));
          multiply_row<T>(v[tap][m], a, b);
        }
      });
    }
  }

  template <typename F>
  DEVICE void each_tap(F f) const {  // f(index among the warp's taps, shift in the tile)
    const int line = (p.cols + 2) * kPixel, first = first_tap() / 3 * line;
    UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      if (FAULT_POINT(2) && first_tap() + tap == 5) continue;
      f(tap, first + tap / 3 * line + tap % 3 * kPixel);
    }
  }

  // warps that share pixels: their sums, in order, end in those of the first
  DEVICE void merge(Totals& v) const {
    if constexpr (kShares > 1) {
      for (int other = 1; other < kShares; ++other) {
        sync_threads();
        if (share() == other) each_value(v, [&](float& value, int i) { parts()[i] = value; });
        sync_threads();
        if (share() == 0) each_value(v, [&](float& value, int i) { value += parts()[i]; });
      }
    }
  }

  template <typename F>
  DEVICE void each_value(Totals& v, F f) const {  // f(value, index in [tap][I][O])
    const int g = lane_index() / 4, t = lane_index() % 4;
    UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      for_each_value<M, N>([&](int m, int n, int j) {
        f(v[tap][m][n][j], ((first_tap() + tap) * I + warp_i() + 16 * m + g + j / 2 * 8) * O + 8 * n + 2 * t + j % 2);
      });
    }
  }

  DEVICE void write(Totals& v, int64_t place) const {
    if (share() != 0) return;
    const int g = lane_index() / 4, o = first_o + lane_index() % 4 * 2, c = p.channels;
    const Global<float> to = p.weight_sums + place * (9 * c * c);
    UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int half = 0; half < 2; ++half) {
          const int i = first_i + warp_i() + 16 * m + 8 * half + g;
          if (i >= c) continue;
          UNROLL
          for (int n = 0; n < N; ++n) {
            const float (&sums)[4] = v[tap][m][n];
            if (o + 8 * n < c)
              store(to, ((first_tap() + tap) * c + i) * c + o + 8 * n,
                    Vector<float, 2>{{sums[2 * half], sums[2 * half + 1]}});
          }
        }
      }
    }
  }

  DEVICE void write_bias(int64_t place) const {
    constexpr int kAcross = O / 8;
    sync_threads();
    const int o = thread_index(), channel = first_o + o;
    if (first_i != 0 || o >= O || channel >= p.channels) return;
    float sum = 0.f;
    for (int other = o / 8; other < kThreads; other += kAcross) sum += biases()[8 * other + o % 8];
    p.bias_sums[place * p.channels + channel] = sum;
  }

  DEVICE void run() const {
    Totals v;
    UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      for_each_value<M, N>([&](int m, int n, int j) { v[tap][m][n][j] = 0.f; });
    }
    begin();
    const int split = block_index(), last = (split + 1) * p.units_per_split;
    for (int unit = split * p.units_per_split; unit < last && unit < p.units; ++unit) {
      const int of_image = unit % (p.tiles_x * p.tiles_y), image = unit / (p.tiles_x * p.tiles_y);
      const int top = of_image / p.tiles_x * p.rows, left = of_image % p.tiles_x * p.cols;
      const int64_t start = static_cast<int64_t>(image) * p.height * p.width * p.channels;
      if (!FAULT_POINT(1)) sync_threads();
      load_operand(start, top, left);
      load_gradient(start, top, left);
      sync_threads();
      UNROLL_BY(1)
      for (int k = share() * kStep; k < p.depth; k += kShares * kStep) multiply(v, k);
    }
    const int64_t place = static_cast<int64_t>(stage * 2 + conv) * p.splits + split;
    write_bias(place);
    merge(v);
    write(v, place);
  }
};

template <typename T, bool TENSOR, int I, int O>
KERNEL_MIN_BLOCKS((WeightBlock<T, TENSOR, I, O>::kThreads), 2)
weight_products(GRID_CONSTANT WeightArguments<T> p) { WeightBlock<T, TENSOR, I, O>(p).run(); }

// ---- launch

template <typename T, bool TENSOR>
void launch_weights(const Pass& p, const WeightGradient& w) {
  WeightArguments<T> a{};
  const WeightPlan plan = plan_weights(p);
  a.height = p.height;
  a.width = p.width;
  a.channels = p.channels;
  a.rows = plan.rows;
  a.cols = plan.columns;
  a.tiles_x = plan.tiles_x;
  a.tiles_y = plan.tiles_y;
  a.depth = plan.depth;
  a.units = plan.units;
  a.blocks_i = plan.blocks_i;
  a.blocks_o = plan.blocks_o;
  a.biases = plan.biases;
  a.places = plan.places;
  a.tile = plan.operand;
  a.gradient = plan.gradient;
  a.tape = static_cast<const unsigned char*>(w.tape);
  a.grads = static_cast<const unsigned char*>(w.grads);
  a.parameters = p.parameters;
  if (p.norm != Norm::none) a.moments = p.moments;
  a.slot_of = p.slot_of;
  a.weight_sums = w.weight_sums;
  a.bias_sums = w.bias_sums;
  a.state = p.state;
  a.operand = p.operand;
  a.post = p.post != 0;
  a.normed = p.norm != Norm::none;
  a.stages = p.stages;
  a.first = w.first;
  a.splits = w.splits;
  a.units_per_split = (a.units + w.splits - 1) / w.splits;
  a.plane = static_cast<int64_t>(p.images) * p.height * p.width * p.channels;
  a.kind_distance = p.stages * a.plane;
  a.norm_eps = p.norm_eps;
  const Grid grid{"weight_gradient",
                  w.splits,
                  32 * plan.tile.warps(),
                  plan.shared,
                  1,
                  p.stream,
                  static_cast<int64_t>(p.stages) * 2 * a.blocks_i * a.blocks_o};
  if (plan.tile.i == 16) return launch(grid, weight_products<T, TENSOR, 16, 16>, a);
  if (plan.tile.i == 32) return launch(grid, weight_products<T, TENSOR, 32, 32>, a);
  return launch(grid, weight_products<T, TENSOR, 64, 32>, a);
}

}  // namespace

void weight_gradient_f32(const Pass&, const WeightGradient&);  // weight_gradient_f32.cu

}  // namespace contnet_fast::cuda
