// The backward pass of a step of the whole solve, image by image: one block has an image at a time.
//
// A block makes the step's maps again from the state before it, each thread keeping its values of them in memory that it
// alone touches, then goes through the stages in reverse. The gradient by a convolution's result and its operand lie in
// shared memory: products over pixels make the gradient by the weights, the nine transposed taps that by the operand.
// Sums over a block's images go to memory that the block alone touches; `add_up` adds blocks in a fixed order.
#pragma once

#include <cmath>
#include <utility>

#include "conv_image.h"
#include "conv_weights.h"

namespace contnet_fast::cuda {

struct StepBack {  // of one launch; null: as in BackwardArguments
  int index;
  const void *start, *upstream, *extra;
  void *result, *tape;
  float *costates, *rates, *weight_sums, *channel_sums;
};

namespace {

constexpr int kStageRows = 11;  // of a stage's channels: two biases; weight, bias, mean, 1/deviation of two norms; skip
constexpr int kScale = 2, kSkipRow = 10;

template <typename T>
struct BackwardArguments : ImageArguments<T> {
  Global<const float> moments;
  Global<const unsigned char> start, upstream, extra;  // upstream: the costate after the last step; extra: added at the end
  Global<unsigned char> result;                        // the gradient of x, written by the first step
  Global<float> costates, rates, weight_sums, channel_sums;
  Global<T> tape;
  Pixels of;
  int first, spare;                // evaluation; bytes before an array
  uint32_t kept_rates, kept_grads;  // bit j: a row, or a column, of the tableau needs it beyond its own
};

template <typename T, bool TENSOR, int C>
struct ImageBackward : Image<BackwardArguments<T>, TENSOR, C> {
  using Base = Image<BackwardArguments<T>, TENSOR, C>;
  using typename Base::L;
  using typename Base::Map;
  static constexpr bool kInMemory = C == 16;  // what stays through a step: maps of 64 registers would spill
  static constexpr int O = C < 32 ? C : 32;  // output channels of a warp's sums by weights: more of them would spill
  using Base::M, Base::N, Base::Image;
  using Base::p, Base::place, Base::first_pixel, Base::first_channel, Base::operand, Base::weights, Base::warps_m;
  using Base::each, Base::each_channel, Base::each_pair, Base::fill, Base::relu_all, Base::inside, Base::write_operand;

  DEVICE Shared<float> vectors(int stage) const {
    return shared_array<float>(p.vectors + stage * (4 * kStageRows * C), kStageRows * C);
  }
  DEVICE Shared<float> means() const { return shared_array<float>(p.partial, 4 * C); }  // and weighted totals
  DEVICE Shared<float> partial(int kind) const {
    return shared_array<float>(p.partial + 4 * (4 + kind * warps_m()) * C, warps_m() * C);
  }
  DEVICE Shared<float> spare() const { return shared_array<float>(p.spare, 9 * C * C); }

  // ---- convolutions of an image, in order: those of the maps, then back. `position` counts them over all images.

  DEVICE int forward_count() const { return 2 * p.stages - (p.post ? 0 : 1); }
  DEVICE int count() const { return forward_count() + 2 * p.stages; }
  DEVICE int stage_of(int position) const {
    const int i = position % count(), back = i - forward_count();
    return back < 0 ? i / 2 : p.stages - 1 - back / 2;
  }
  DEVICE int conv_of(int position) const {
    const int i = position % count(), back = i - forward_count();
    return back < 0 ? i % 2 : 1 - back % 2;
  }

  DEVICE void fetch(int chunk) const {
    const int position = chunk / L::kChunks, images = (p.images - block_index() + block_count() - 1) / block_count();
    if (position >= images * count()) return;
    const int conv = conv_of(position), slot = p.slot_of[p.first + stage_of(position)];
    if (L::kChunks == 1 && position > 1 && conv == conv_of(position - 2) &&
        slot == p.slot_of[p.first + stage_of(position - 2)])
      return;  // still in this buffer
    const int c = p.channels;
    const int64_t matrix = conv * p.slots + slot;
    Base::fetch_weights(p.packed + (matrix * 9 + chunk % L::kChunks * L::kTaps) * c * c, weights(chunk));
  }

  // v <- the convolution at `position` of a tile; `before` runs once the tile is there
  template <bool BACK, typename F>
  DEVICE void convolve(Map& v, Shared<T> tile, int position, F before) const {
    for (int i = 0; i < L::kChunks; ++i) {
      const int chunk = position * L::kChunks + i;
      copy_async_wait<0>();
#ifdef PLANTED_FAULT
      if (PLANTED_FAULT != 1 || !BACK)
#endif
        sync_threads();
      fetch(chunk + 1);
      copy_async_commit();
      if (i == 0) {
        before();
        fill(v, 0.f);
      }
      multiply_taps<T, TENSOR, C, BACK, M, N>(v, tile, weights(chunk), place, p.line, i * L::kTaps);
    }
  }

  // ---- what a thread keeps of maps, `index` of them before; the values of a warp lie together, so that offsets in them are constants

  template <typename E>
  DEVICE Global<E> own(Global<E> maps, int64_t index) const {
    const int i = afresh(thread_index());
    return maps + (index * (4 * M * N * thread_count()) + i / 32 * (128 * M * N) + i % 32 * (16 / static_cast<int>(sizeof(E))));
  }
  DEVICE Global<T> kept_map(int kind, int stage) const {
    const int kinds = p.post ? 3 : 2;
    return own(p.tape, (static_cast<int64_t>(block_index()) * kinds + kind) * p.stages + stage);
  }
  DEVICE Global<float> kept_rate(int stage) const {
    return own(p.rates, static_cast<int64_t>(block_index()) * (p.stages + 1) + stage);
  }

  template <typename E>
  DEVICE void save(Map& v, Global<E> to) const {
    UNROLL
    for (int n = 0; n < N; ++n) {
      UNROLL
      for (int m = 0; m < M; m += 4 / static_cast<int>(sizeof(E))) {
        const int at = (n * M + m) * 128;
        if constexpr (sizeof(E) == 4) {
          store(to, at, Vector<float, 4>{{v[m][n][0], v[m][n][1], v[m][n][2], v[m][n][3]}});
        } else {
          Vector<uint32_t, 4> packed;
          UNROLL
          for (int i = 0; i < 4; ++i) packed[i] = pack<E>(v[m + i / 2][n][i % 2 * 2], v[m + i / 2][n][i % 2 * 2 + 1]);
          store(pointer_cast<uint32_t>(to), at / 2, packed);
        }
      }
    }
  }

  // f(m, i, value) for a thread's values of tile n of a map that it kept
  template <typename E, typename F>
  DEVICE void each_kept(Global<E> from, int n, F f) const {
    UNROLL
    for (int m = 0; m < M; m += 4 / static_cast<int>(sizeof(E))) {
      const int at = (n * M + m) * 128;
      if constexpr (sizeof(E) == 4) {
        const Vector<float, 4> values = load<4>(from, at);
        UNROLL
        for (int i = 0; i < 4; ++i) f(m, i, values[i]);
      } else {
        const Vector<uint32_t, 4> packed = load<4>(pointer_cast<uint32_t>(from), at / 2);
        UNROLL
        for (int i = 0; i < 4; ++i) {
          f(m + i / 2, i % 2 * 2, low_half<E>(packed[i]));
          f(m + i / 2, i % 2 * 2 + 1, high_half<E>(packed[i]));
        }
      }
    }
  }

  template <typename E>
  DEVICE void restore(Map& v, Global<E> from) const {
    UNROLL
    for (int n = 0; n < N; ++n) each_kept(from, n, [&](int m, int i, float value) { v[m][n][i] = value; });
  }

  // to += v, in memory
  DEVICE void add_to(Global<float> to, Map& v) const {
    UNROLL
    for (int n = 0; n < N; ++n) {
      UNROLL
      for (int m = 0; m < M; ++m) {
        const int at = (n * M + m) * 128;
        Vector<float, 4> sum = load<4>(to, at);
        UNROLL
        for (int i = 0; i < 4; ++i) sum[i] += v[m][n][i];
        store(to, at, sum);
      }
    }
  }

  // v <- scale * v + weight * y, or v + weight * what was kept. Weight zero adds nothing, not even NaN.
  DEVICE void combine(Map& v, float scale, float weight, Map& y) const {
    UNROLL
    for (int m = 0; m < M; ++m) {
      UNROLL
      for (int n = 0; n < N; ++n) {
        UNROLL
        for (int i = 0; i < 4; ++i)
          v[m][n][i] = scale * (scale != 0.f ? v[m][n][i] : 0.f) + weight * (weight != 0.f ? y[m][n][i] : 0.f);
      }
    }
  }
  DEVICE void add_kept(Map& v, float weight, Global<float> from) const {
    if (weight == 0.f) return;
    UNROLL
    for (int n = 0; n < N; ++n) each_kept(from, n, [&](int m, int i, float value) { v[m][n][i] += weight * value; });
  }

  // Where a step begins, which each of its stages reads: in registers, or in memory where those do not hold two maps.
  DEVICE void begin(Map& y, Map& v) const {
    if constexpr (kInMemory) {
      save(v, kept_rate(p.stages));
    } else {
      combine(y, 0.f, 1.f, v);
    }
  }
  DEVICE void from_begin(Map& v, float scale, float weight, Map& y) const {  // as combine
    if constexpr (kInMemory) {
      combine(v, scale, 0.f, v);
      add_kept(v, weight, kept_rate(p.stages));
    } else {
      combine(v, scale, weight, y);
    }
  }

  // ---- channels

  DEVICE void load_vectors(int image) const {
    const int c = p.channels, rows = p.norm == Norm::sample ? p.images : 1, row = p.norm == Norm::sample ? image : 0;
    for (int e = afresh(thread_index()); e < p.stages * C; e += thread_count()) {
      const int stage = e / C, channel = e % C, evaluation = p.first + stage;
      const bool exists = channel < c;
      const Shared<float> to = vectors(stage) + channel;
      const Global<const float> from = p.parameters + (p.slot_of[evaluation] * kParameterRows * c + (exists ? channel : 0));
      for (int i = 0; i < 2; ++i) {
        float weight = exists ? 1.f : 0.f, bias = 0.f, mean = 0.f, rstd = 1.f;
        if (exists && p.norm != Norm::none) {
          const int64_t at = (static_cast<int64_t>((evaluation * 2 + i) * 2) * rows + row) * c + channel;
          const float variance = p.moments[at + static_cast<int64_t>(rows) * c];
          weight = from[(2 + 2 * i) * c];
          bias = from[(3 + 2 * i) * c];
          mean = p.moments[at];
          rstd = 1.f / std::sqrt((variance < 0.f ? 0.f : variance) + p.norm_eps);
        }
        to[i * C] = exists ? static_cast<float>(from[i * c]) : 0.f;
        to[(kScale + 4 * i) * C] = weight;
        to[(kScale + 4 * i + 1) * C] = bias;
        to[(kScale + 4 * i + 2) * C] = mean;
        to[(kScale + 4 * i + 3) * C] = rstd;
      }
      to[kSkipRow * C] = exists ? static_cast<float>(from[(kParameterRows - 1) * c]) : 0.f;
    }
    sync_threads();
  }

  DEVICE void normalise(Map& v, int stage, int i) const {
    const Shared<float> of = vectors(stage) + (kScale + 4 * i) * C;
    const int channel = first_channel();
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<float, 2> weight = load<2>(of, channel + 8 * n), bias = load<2>(of, C + channel + 8 * n);
      const Vector<float, 2> mean = load<2>(of, 2 * C + channel + 8 * n), rstd = load<2>(of, 3 * C + channel + 8 * n);
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
          const float scale = weight[j % 2] * rstd[j % 2];
          v[m][n][j] = v[m][n][j] * scale + (bias[j % 2] - mean[j % 2] * scale);
        }
      }
    }
  }

  // a warp's sums of its pixels, two channels a lane, into its row of a kind
  DEVICE void put_sums(int kind, int n, float (&sum)[2]) const {
    const int pixel = first_pixel();
    UNROLL
    for (int j = 0; j < 2; ++j) {
      UNROLL
      for (int mask = 4; mask < 32; mask *= 2) sum[j] += shuffle_xor(sum[j], mask);
      if (pixel % 8 == 0) partial(kind)[pixel / (16 * M) * C + first_channel() + 8 * n + j] = sum[j];
    }
  }

  // means of weight * g and weight * g * normalised over the groups of norm i, from the sums of `through_norm`
  DEVICE void group_means(int stage, int i) const {
    sync_threads();
    for (int c = afresh(thread_index()); c < 2 * C; c += thread_count()) {
      float sum = 0.f;
      for (int r = 0; r < warps_m(); ++r) sum += partial(2 + 2 * i + c / C)[r * C + c % C];
      means()[2 * C + c] = sum * vectors(stage)[(kScale + 4 * i) * C + c % C];
    }
    sync_threads();
    const float share = 1.f / static_cast<float>(p.group * p.pixels);
    for (int e = afresh(thread_index()); e < 2 * C; e += thread_count()) {
      const int c = e % C, first = e / C * C + c / p.group * p.group;
      float sum = 0.f;
      if (c < p.channels)
        for (int k = 0; k < p.group; ++k) sum += means()[2 * C + first + k];
      means()[e] = sum * share;
    }
    sync_threads();
  }

  // From the gradient by what norm i (in order pre also the relu after it) makes of a kept map to that by the map (in order
  // post also through the relu before). The second norm comes with the skip scalar. No norm: weight 1, mean 0, deviation 1.
  template <bool POST>
  DEVICE void through_norm(Map& v, Global<T> map, int stage, int i) const {
    const Shared<float> of = vectors(stage) + (kScale + 4 * i) * C, skips = vectors(stage) + kSkipRow * C;
    for (int pass = 0; pass < (p.norm == Norm::sample ? 2 : 1); ++pass) {
      const bool sums = pass == 0, ends = p.norm != Norm::sample || pass == 1;
      if (pass == 1) group_means(stage, i);
      const int pixel = first_pixel(), channel = first_channel();
      UNROLL
      for (int n = 0; n < N; ++n) {
        const Vector<float, 2> weight = load<2>(of, channel + 8 * n), bias = load<2>(of, C + channel + 8 * n);
        const Vector<float, 2> mean = load<2>(of, 2 * C + channel + 8 * n), rstd = load<2>(of, 3 * C + channel + 8 * n);
        Vector<float, 2> skip{{1.f, 1.f}}, plain{}, with{};
        if (i == 1) skip = load<2>(skips, channel + 8 * n);
        if (pass == 1) {
          plain = load<2>(means(), channel + 8 * n);
          with = load<2>(means(), C + channel + 8 * n);
        }
        float sum[3][2] = {};
        each_kept(map, n, [&](int m, int q, float value) {
          const int j = q % 2;
          const float hat = (value - mean[j]) * rstd[j], scale = weight[j] * rstd[j];
          float g = v[m][n][q];
          if (sums) {
            const bool in = inside(pixel, m, q / 2);
            if constexpr (!POST) {
              const float result = value * scale + (bias[j] - mean[j] * scale);
              sum[2][j] += in ? relu(result) * g : 0.f;
              g = result <= 0.f ? 0.f : g * skip[j];
            }
            sum[0][j] += in ? g : 0.f;
            sum[1][j] += in ? g * hat : 0.f;
          }
          if (ends) {
            g = scale * g - rstd[j] * (plain[j] + hat * with[j]);
            if constexpr (POST) g = value <= 0.f ? 0.f : g * skip[j];
          }
          v[m][n][q] = g;
        });
        if (sums) {
          put_sums(2 + 2 * i, n, sum[0]);
          put_sums(3 + 2 * i, n, sum[1]);
          if (!POST && i == 1) put_sums(6, n, sum[2]);
        }
      }
    }
  }

  // ---- a step

  DEVICE void make_maps(int image, int position) const {
    Map y, v;
    fill(v, 0.f);
    Base::read_map(v, p.start + image * p.image_bytes);
    begin(y, v);
    for (int stage = 0; stage < p.stages; ++stage) {
      const Shared<float> of = vectors(stage);
      const bool last = stage == p.stages - 1;
      for (int conv = 0; conv < 2; ++conv) {
        save(v, kept_map(conv, stage));
        if (!p.post && last && conv == 1) return;
        if (!p.post) {
          normalise(v, stage, conv);
          relu_all(v);
        } else if (conv == 1) {
          normalise(v, stage, 0);
        }
        write_operand(v, operand(conv));
        convolve<false>(v, operand(conv), position++, [] {});
        each_channel(v, of + conv * C, of + conv * C, [](float& value, float bias, float) { value += bias; });
        if (p.post) relu_all(v);
      }
      if (p.post) {
        save(v, kept_map(2, stage));
        if (last) return;
        normalise(v, stage, 1);
      }
      each_channel(v, of + kSkipRow * C, of, [this](float& value, float skip, float) { value *= skip * p.eps; });
      if ((p.kept_rates >> stage & 1) != 0) save(v, kept_rate(stage));
      from_begin(v, p.rows[stage + 1][stage], 1.f, y);
      for (int j = 0; j < stage; ++j) add_kept(v, p.rows[stage + 1][j], kept_rate(j));
    }
  }

  // sums of one convolution's gradient by its weights, three taps, 16 input and O output channels a warp at a time
  DEVICE void weight_gradient(int stage, int conv, bool add) const {
    constexpr int kUnits = 3 * (C / 16) * (C / O);
    const int warps = thread_count() / 32, splits = C == 16 && warps >= 2 * kUnits ? 2 : 1;
    float sum[3][O / 8][4];
    for (int item = warp_index(); item < kUnits * splits; item += warps) {
      const int unit = item % kUnits, row = unit % 3, channel = unit / 3 % (C / 16) * 16, column = unit / 3 / (C / 16) * O;
      UNROLL
      for (int i = 0; i < 3 * O / 2; ++i) sum[i / (O / 2)][i / 4 % (O / 8)][i % 4] = 0.f;
      multiply_pixels<T, TENSOR, O>(sum, operand(0) + (row * p.line + channel), operand(1) + column, p.of, item / kUnits,
                                    splits);
      if (splits == 1) {
        put_weights(sum, stage, conv, row, channel, column, add);
      } else if (item >= kUnits) {
        UNROLL
        for (int i = 0; i < 3 * O / 8; ++i) {
          const float(&part)[4] = sum[i / (O / 8)][i % (O / 8)];
          store(spare(), ((unit * 3 * O / 8 + i) * 32 + lane_index()) * 4,
                Vector<float, 4>{{part[0], part[1], part[2], part[3]}});
        }
      }
    }
    if (splits == 1) return;
    sync_threads();
    const int unit = warp_index();
    if (unit >= kUnits) return;
    UNROLL
    for (int i = 0; i < 3 * O / 8; ++i) {
      const Vector<float, 4> part = load<4>(spare(), ((unit * 3 * O / 8 + i) * 32 + lane_index()) * 4);
      UNROLL
      for (int j = 0; j < 4; ++j) sum[i / (O / 8)][i % (O / 8)][j] += part[j];
    }
    put_weights(sum, stage, conv, unit % 3, 0, 0, add);
  }

  DEVICE void put_weights(float (&sum)[3][O / 8][4], int stage, int conv, int row, int channel, int column, bool add) const {
    const int c = p.channels, lane = lane_index();
    const int64_t first = (static_cast<int64_t>(stage * 2 + conv) * block_count() + block_index()) * 9 * c * c;
    UNROLL
    for (int tap = 0; tap < 3; ++tap) {
      UNROLL
      for (int half = 0; half < 2; ++half) {
        const int in = channel + lane / 4 + 8 * half;
        if (in >= c) continue;
        UNROLL
        for (int n = 0; n < O / 8; ++n) {
          if (column + 8 * n >= c) continue;
          const int64_t at = first + ((row * 3 + tap) * c + in) * c + column + 8 * n + lane % 4 * 2;
          Vector<float, 2> value{{sum[tap][n][2 * half], sum[tap][n][2 * half + 1]}};
          if (add) {
            const Vector<float, 2> before = load<2>(p.weight_sums, at);
            value[0] += before[0];
            value[1] += before[1];
          }
          store(p.weight_sums, at, value);
        }
      }
    }
  }

  // the gradient v by a convolution's result -> that by its operand; sums by bias and weights on the way
  DEVICE void through_convolution(Map& v, int stage, int conv, int position, bool add) const {
    const int pixel = first_pixel();
    sync_threads();  // both operands are free
    UNROLL
    for (int n = 0; n < N; ++n) {
      float sum[2] = {};
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int i = 0; i < 4; ++i) sum[i % 2] += inside(pixel, m, i / 2) ? v[m][n][i] : 0.f;
      }
      put_sums(conv, n, sum);
    }
    write_operand(v, operand(1));
    restore(v, kept_map(conv, stage));
    if (!p.post) {
      normalise(v, stage, conv);
      relu_all(v);
    } else if (conv == 1) {
      normalise(v, stage, 0);
    }
    write_operand(v, operand(0));
    convolve<true>(v, operand(1), position, [&] { weight_gradient(stage, conv, add); });
  }

  DEVICE void put_channel_sums(int stage, bool add) const {
    sync_threads();
    for (int e = afresh(thread_index()); e < 7 * C; e += thread_count()) {
      const int kind = e / C, c = e % C;
      if (c >= p.channels || (p.post && kind == 6)) continue;
#ifdef PLANTED_FAULT
      if (PLANTED_FAULT == 5 && kind == 0) continue;
#endif
      const int64_t row = static_cast<int64_t>((p.first + stage) * 7 + kind) * block_count() + block_index();
      float sum = 0.f;
      for (int r = 0; r < warps_m(); ++r) sum += partial(kind)[r * C + c];
      if (add) sum += p.channel_sums[row * p.channels + c];
      p.channel_sums[row * p.channels + c] = sum;
    }
    sync_threads();
  }

  DEVICE void go_back(int image, int position, bool add) const {
    const Global<float> between = own(p.costates, image);
    Map costate, v;
    [[maybe_unused]] Map total;
    fill(v, 0.f);
    if (p.upstream) {
      Base::read_map(v, p.upstream + image * p.image_bytes);
    } else {
      restore(v, between);
    }
    begin(costate, v);
    if constexpr (kInMemory) {
      save(v, between);
    } else {
      combine(total, 0.f, 1.f, v);
    }
    for (int stage = p.stages - 1; stage >= 0; --stage) {
      const float after = stage + 1 < p.stages ? p.rows[stage + 1][stage] * p.eps : 0.f, weight = p.update[stage] * p.eps;
      from_begin(v, after, weight, costate);
      for (int j = stage + 2; j < p.stages; ++j) add_kept(v, p.rows[j][stage] * p.eps, kept_rate(j));
      for (int conv = 1; conv >= 0; --conv) {
        if (p.post) through_norm<true>(v, kept_map(conv + 1, stage), stage, conv);
        through_convolution(v, stage, conv, position++, add);
        if (!p.post) through_norm<false>(v, kept_map(conv, stage), stage, conv);
      }
      if ((p.kept_grads >> stage & 1) != 0) save(v, kept_rate(stage));
      if constexpr (kInMemory) {
        add_to(between, v);
      } else {
        combine(total, 1.f, 1.f, v);
      }
      put_channel_sums(stage, add);
    }
    if constexpr (kInMemory) {
      restore(v, between);
    } else {
      combine(v, 0.f, 1.f, total);
    }
    if (p.extra)
      each_pair([&](int m, int half, int n, int at) {
        const Vector<float, 2> pair = load_state(p.extra + image * p.image_bytes, p.state, at);
        v[m][n][2 * half] += pair[0];
        v[m][n][2 * half + 1] += pair[1];
      });
    if (p.result) {
      Base::write_map(v, p.result + image * p.image_bytes);
    } else {
      save(v, between);
    }
  }

  DEVICE void run() const {
    Base::clear_operands();
    fetch(0);
    copy_async_commit();
    int position = 0;
    for (int image = block_index(); image < p.images; image += block_count()) {
      load_vectors(image);
      make_maps(image, position);
      go_back(image, position + forward_count(), image != block_index());
      position += count();
    }
  }
};

template <typename T, bool TENSOR, int C>
KERNEL_MIN_BLOCKS(kMostThreads, 1)
solve_image_back(GRID_CONSTANT BackwardArguments<T> p) {
  ImageBackward<T, TENSOR, C>(p).run();
}

// ---- launch

struct BackwardArrays {  // bytes of shared memory before each, and of all
  int partial, spare, end;
};

inline BackwardArrays backward_arrays(int vectors, int channels, int stages, int warps_m) {
  BackwardArrays a{};
  a.partial = vectors + 4 * kStageRows * channels * stages;
  a.spare = a.partial + 4 * (4 + 7 * warps_m) * channels;
  a.end = a.spare + (channels == 16 ? 4 * 9 * 16 * 16 : 0);
  return a;
}

template <typename T, bool TENSOR>
void launch_step_back(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  BackwardArguments<T> a{};
  describe_image(a, p, plan.channels, 2);
  a.packed = static_cast<const T*>(p.packed);
  a.parameters = p.parameters;
  const ConvLayout layout{plan.channels, sizeof(T)};
  const BackwardArrays arrays = backward_arrays(a.vectors, plan.channels, p.stages, plan.threads / (32 * layout.warps_n()));
  a.partial = arrays.partial;
  a.spare = arrays.spare;
  if (p.norm != Norm::none) a.moments = p.moments;
  a.start = static_cast<const unsigned char*>(step.start);
  a.upstream = static_cast<const unsigned char*>(step.upstream);
  a.extra = static_cast<const unsigned char*>(step.extra);
  a.result = static_cast<unsigned char*>(step.result);
  a.costates = step.costates;
  a.rates = step.rates;
  a.weight_sums = step.weight_sums;
  a.channel_sums = step.channel_sums;
  a.tape = static_cast<T*>(step.tape);
  a.of = {a.pixels, a.width, a.line, layout.pixel(), ((1 << 20) + a.width - 1) / a.width};
  a.first = step.index * p.stages;
  for (int s = 0; s < p.stages; ++s)
    for (int j = 0; j < s - 1; ++j)
      if (p.rows[s][j] != 0.f) {
        a.kept_rates |= 1u << j;
        a.kept_grads |= 1u << s;
      }
  const Grid grid{"conv_solve_backward", plan.blocks, plan.threads, plan.shared, 1, p.stream};
  if (plan.channels == 16) return launch(grid, solve_image_back<T, TENSOR, 16>, a);
  if (plan.channels == 32) return launch(grid, solve_image_back<T, TENSOR, 32>, a);
  return launch(grid, solve_image_back<T, TENSOR, 64>, a);
}

}  // namespace

void step_back_f32(const ConvSolveBackward&, const SolveBackwardPlan&, const StepBack&);  // conv_solve_backward_f32.cu

}  // namespace contnet_fast::cuda
