// Maps as matrices [pixel, channel], of which a thread has V neighbouring channels of every so many pixels: their sums
// by channel, statistics of the batch as partial rows, and norms as one scale and one shift a channel.
#pragma once

#include <cmath>

#include "cuda/conv/conv_launch.h"
#include "cuda/conv/plan/budgets.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {

DEVICE float relu(float x) { return x < 0.f ? 0.f : x; }  // NaN stays

DEVICE float reciprocal_deviation(float variance, float eps) {  // interpolated in depth a variance may dip below 0
  return 1.f / std::sqrt((variance < 0.f ? 0.f : variance) + eps);
}

// ---- values of a map: `type` is f32 or a 16-bit type, i counts values

template <int V>
DEVICE void load_values(float (&v)[V], Global<const unsigned char> p, Scalar type, int64_t i) {
  if (type == Scalar::f32) {
    UNROLL
    for (int j = 0; j < V; j += 4) {
      const Vector<float, 4> some = load<4>(pointer_cast<const float>(p), i + j);
      UNROLL
      for (int k = 0; k < 4; ++k) v[j + k] = some[k];
    }
    return;
  }
  const Vector<uint32_t, V / 2> pairs = load<V / 2>(pointer_cast<const uint32_t>(p), i / 2);
  UNROLL
  for (int j = 0; j < V; j += 2) {
    const uint32_t r = pairs[j / 2];
    v[j] = type == Scalar::bf16 ? low_half<bf16>(r) : low_half<f16>(r);
    v[j + 1] = type == Scalar::bf16 ? high_half<bf16>(r) : high_half<f16>(r);
  }
}

// leaves in v what was stored: rounded
template <int V>
DEVICE void store_values(float (&v)[V], Global<unsigned char> p, Scalar type, int64_t i) {
  if (type == Scalar::f32) {
    UNROLL
    for (int j = 0; j < V; j += 4)
      store(pointer_cast<float>(p), i + j, Vector<float, 4>{{v[j], v[j + 1], v[j + 2], v[j + 3]}});
    return;
  }
  Vector<uint32_t, V / 2> pairs;
  UNROLL
  for (int j = 0; j < V; j += 2) {
    const uint32_t r = type == Scalar::bf16 ? pack<bf16>(v[j], v[j + 1]) : pack<f16>(v[j], v[j + 1]);
    pairs[j / 2] = r;
    v[j] = type == Scalar::bf16 ? low_half<bf16>(r) : low_half<f16>(r);
    v[j + 1] = type == Scalar::bf16 ? high_half<bf16>(r) : high_half<f16>(r);
  }
  store(pointer_cast<uint32_t>(p), i / 2, pairs);
}

// operands of a product, to value i of shared memory; TENSOR: float32 rounded to TF32
template <typename T, bool TENSOR, int V>
DEVICE void store_operands(const float (&v)[V], Shared<T> to, int i) {
  if constexpr (sizeof(T) == 2) {
    Vector<uint32_t, V / 2> pairs;
    UNROLL
    for (int j = 0; j < V; j += 2) pairs[j / 2] = pack<T>(v[j], v[j + 1]);
    store(pointer_cast<uint32_t>(to), i / 2, pairs);
  } else {
    UNROLL
    for (int j = 0; j < V; j += 4) {
      Vector<float, 4> four;
      UNROLL
      for (int k = 0; k < 4; ++k) four[k] = TENSOR ? bit_cast<float>(to_tf32(v[j + k])) : v[j + k];
      store(to, i + j, four);
    }
  }
}

// ---- sums over the pixels of a block

// The channels of a thread, and its place among those that have the same ones. Threads beyond whole rows have none.
struct Columns {
  int groups, group, row, rows;
  DEVICE explicit Columns(int groups)
      : groups(groups), group(thread_index() % groups), row(thread_index() / groups), rows(thread_count() / groups) {}
  DEVICE bool active() const { return row < rows; }
};

// scratch[r * groups * V + channel] <- sum over the threads of a column of sums[r], in one order. It begins and ends
// with a barrier of the block.
template <int R, int V>
DEVICE void column_sums(const float (&sums)[R][V], const Columns& of, Shared<float> scratch) {
  const int line = of.groups * V, width = R * line, slices = thread_count() > width ? thread_count() / width : 1;
  const Shared<float> some = scratch + of.rows * width;
  sync_threads();
  if (of.active()) {
    UNROLL
    for (int r = 0; r < R; ++r) {
      UNROLL
      for (int j = 0; j < V; ++j) scratch[of.row * width + r * line + of.group * V + j] = sums[r][j];
    }
  }
  sync_threads();
  for (int e = thread_index(); e < width * slices; e += thread_count()) {
    float sum = 0.f;
    for (int row = e / width; row < of.rows; row += slices) sum += scratch[row * width + e % width];
    some[e] = sum;
  }
  sync_threads();
  for (int c = thread_index(); c < width; c += thread_count()) {
    float sum = some[c];
    for (int slice = 1; slice < slices; ++slice) sum += some[slice * width + c];
    scratch[c] = sum;
  }
  sync_threads();
}

// scratch[column] <- the sum over `count` rows, `distance` values apart, of four columns a thread: threads share the
// rows and have eight loads on their way at a time, if the kernel asks for few blocks a multiprocessor: else ptxas
// saves the registers and waits for each. Barriers and order are those of column_sums.
DEVICE void add_rows(Global<const float> rows, int count, int64_t distance, const Columns& of, Shared<float> scratch) {
  float sum[1][4] = {};
  if (of.active()) {
    UNROLL_BY(1)
    for (int first = of.row; first < count; first += 8 * of.rows) {
      Vector<float, 4> some[8] = {};
      UNROLL
      for (int i = 0; i < 8; ++i)
        if (first + i * of.rows < count) some[i] = load<4>(rows, (first + i * of.rows) * distance + 4 * of.group);
      UNROLL
      for (int i = 0; i < 8; ++i) {
        UNROLL
        for (int j = 0; j < 4; ++j) sum[0][j] += some[i][j];
      }
    }
  }
  column_sums<1, 4>(sum, of, scratch);
}

// ---- statistics

// Means and centred sums of squares of a thread's values (Welford 1962).
template <int V>
struct Moments {
  float n = 0.f, mean[V] = {}, squares[V] = {};

  DEVICE void add(const float (&v)[V]) {
    n += 1.f;
    const float share = 1.f / n;
    UNROLL
    for (int j = 0; j < V; ++j) {
      const float d = v[j] - mean[j];
      mean[j] += d * share;
      squares[j] += d * (v[j] - mean[j]);
    }
  }

  // A row of partials of `count` pixels of the block, of which its first row of threads has some: their mean first,
  // then squares about it. `first`: the block's first channel.
  DEVICE void write(const Columns& of, float count, Shared<float> scratch, Global<float> partials, int64_t row,
                    int first, int channels) {
    const int own = of.group * V;
    const float share = 1.f / count;
    float sums[1][V], centre[V];
    sync_threads();
    if (of.row == 0) {
      UNROLL
      for (int j = 0; j < V; ++j) scratch[own + j] = mean[j];
    }
    sync_threads();
    UNROLL
    for (int j = 0; j < V; ++j) {
      centre[j] = scratch[own + j];
      sums[0][j] = n > 0.f ? n * (mean[j] - centre[j]) : 0.f;
    }
    column_sums<1, V>(sums, of, scratch);
    UNROLL
    for (int j = 0; j < V; ++j) {
      centre[j] += scratch[own + j] * share;
      const float d = mean[j] - centre[j];
      sums[0][j] = n > 0.f ? squares[j] + n * d * d : 0.f;
    }
    column_sums<1, V>(sums, of, scratch);
    const Global<float> to = partials + row * partial_size(channels);
    if (of.row == 0 && first + own < channels) {
      UNROLL
      for (int j = 0; j < V; ++j) {
        to[first + own + j] = centre[j];
        to[channels + first + own + j] = scratch[own + j];
      }
    }
    if (first == 0 && thread_index() < 4) to[2 * channels + thread_index()] = count;
  }
};

// scratch[channel], scratch[channels + channel] <- mean and biased variance over all rows of partials: of `count`
// pixels
DEVICE void merge_partials(Global<const float> partials, int rows, float count, int channels, Shared<float> scratch) {
  const Columns of(channels / 4);
  const int64_t size = partial_size(channels);
  const int c = of.group * 4;
  const Vector<float, 4> at = load<4>(partials, c);
  float sums[2][4] = {};
  if (of.active()) {
    UNROLL_BY(1)
    for (int begin = of.row; begin < rows; begin += 4 * of.rows) {  // four rows on their way at a time
      Vector<float, 4> mean[4] = {}, rest[4] = {};
      float n[4] = {};
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const int64_t row = (begin + i * of.rows) * size;
        if (begin + i * of.rows >= rows) continue;
        mean[i] = load<4>(partials, row + c);
        rest[i] = load<4>(partials, row + channels + c);
        n[i] = partials[row + 2 * channels];
      }
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
          const float d = mean[i][j] - at[j];
          sums[0][j] += n[i] * d;
          sums[1][j] += rest[i][j] + n[i] * d * d;
        }
      }
    }
  }
  column_sums<2, 4>(sums, of, scratch);
  const float share = 1.f / count;
  for (int i = thread_index(); i < channels; i += thread_count()) {
    const float mean = scratch[i] * share, variance = scratch[channels + i] * share - mean * mean;
    scratch[i] = partials[i] + mean;
    scratch[channels + i] = variance < 0.f ? 0.f : variance;
  }
  sync_threads();
}

// Where the statistics of a norm come from, and where the first block writes them.
struct NormSource {
  Global<const float> partials;  // of the launch before, or null: from the moments
  Global<float> moments;
  Global<unsigned char> statistics;  // or null
  Global<const float> parameters;    // of the slot: [kParameterRows, channel]
  Scalar type;                       // of statistics
  int rows, at;                      // rows of partials; of the norm, 2 evaluation + norm
  float count, norm_eps;
};

// to[channel], to[padded + channel] <- scale and shift of norm at % 2; 0 from `channels` on. Ends with a barrier.
DEVICE void fold_norm(const NormSource& p, int channels, int padded, bool first, Shared<float> scratch,
                      Shared<float> to) {
  if (p.partials) merge_partials(p.partials, p.rows, p.count, channels, scratch);
  const int64_t base = static_cast<int64_t>(p.at) * 2 * channels;
  for (int c = thread_index(); c < padded; c += thread_count()) {
    float scale = 0.f, shift = 0.f;
    if (c < channels) {
      float mean, variance;
      if (p.partials) {
        mean = scratch[c];
        variance = scratch[channels + c];
        if (first) {
          p.moments[base + c] = mean;
          p.moments[base + channels + c] = variance;
          const float whole[2] = {mean, variance * (p.count > 1.f ? p.count / (p.count - 1.f) : 1.f)};
          UNROLL
          for (int i = 0; p.statistics && i < 2; ++i) {
            const int64_t place = base + i * channels + c;
            if (p.type == Scalar::f32) pointer_cast<float>(p.statistics)[place] = whole[i];
            if (p.type == Scalar::bf16) pointer_cast<bf16>(p.statistics)[place] = from_float<bf16>(whole[i]);
            if (p.type == Scalar::f16) pointer_cast<f16>(p.statistics)[place] = from_float<f16>(whole[i]);
          }
        }
      } else {
        mean = p.moments[base + c];
        variance = p.moments[base + channels + c];
      }
      const int row = 2 + 2 * (p.at % 2);
      scale = p.parameters[row * channels + c] * reciprocal_deviation(variance, p.norm_eps);
      shift = p.parameters[(row + 1) * channels + c] - mean * scale;
    }
    to[c] = scale;
    to[padded + c] = shift;
  }
  sync_threads();
}

}  // namespace contnet_fast::cuda
