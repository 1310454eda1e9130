// The backward pass of a step of the whole solve, image by image: one block has an image at a time.
//
// A block makes the step's maps again from the state before it, each thread keeping its values of them in memory that
// it alone touches, then goes through the stages in reverse. The gradient by a convolution's result and its operand lie
// in shared memory: products over pixels make the gradient by the weights, the nine transposed taps that by the
// operand. Sums over a block's images go to memory that the block alone touches; `add_up` adds blocks in a fixed order.
#pragma once

#include <algorithm>

#include "cuda/conv/plan/solve_backward_plan.h"
#include "cuda/conv/solve/conv_solve_norms.h"

namespace contnet_fast::cuda {

// Sums of weights of a step: stages of one slot share theirs.
struct StepSums {
  int count, of[kMostStages], slots[kMostStages];  // of: by stage; slots: by sum
  uint32_t repeats;                                // bit j: a later stage has the sum of stage j

  StepSums(const ConvProblem& p, int step) : count(0), repeats(0) {
    for (int s = p.stages - 1; s >= 0; --s) {
      const int slot = p.slot_list[step * p.stages + s];
      of[s] = static_cast<int>(std::find(slots, slots + count, slot) - slots);
      if (of[s] < count) repeats |= 1u << s;
      if (of[s] == count) slots[count++] = slot;
    }
  }
};

struct StepBack {  // of one launch; null: as in BackwardArguments
  int index;
  const StepSums* sums;
  const void *start, *upstream, *extra;
  void *result, *tape;
  float *costates, *rates, *weight_sums, *channel_sums;
};

namespace {

template <typename T, bool TENSOR, int C>
struct ImageBackward {
  using Kept = KeptMaps<T, TENSOR, C>;
  using Part = typename Kept::Part;
  using L = typename Part::L;
  using Map = typename Part::Map;
  static constexpr int O = C < 32 ? C : 32;  // output channels of a warp's sums by weights: more of them would spill
  static constexpr int M = Part::M, N = Part::N;
  static constexpr bool kInMemory = Kept::kInMemory;
  const BackwardArguments<T>& p;
  Part image;
  Kept kept;
  NormsBack<T, TENSOR, C> norms;

  DEVICE explicit ImageBackward(const BackwardArguments<T>& p) : p(p), image(p), kept{p}, norms{p, image, kept} {}

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
    image.fetch_weights(p.packed + (matrix * 9 + chunk % L::kChunks * L::kTaps) * c * c, image.weights(chunk));
  }

  // v <- the convolution at `position` of a tile; `before` runs once the tile is there
  template <bool BACK, typename F>
  DEVICE void convolve(Map& v, Shared<T> tile, int position, F before) const {
    for (int i = 0; i < L::kChunks; ++i) {
      const int chunk = position * L::kChunks + i;
      copy_async_wait<0>();
      if (!FAULT_POINT(1) || !BACK) sync_threads();
      fetch(chunk + 1);
      copy_async_commit();
      if (i == 0) {
        before();
        image.fill(v, 0.f);
      }
      multiply_taps<T, TENSOR, C, BACK, M, N>(v, tile, image.weights(chunk), image.place, p.line, i * L::kTaps);
    }
  }
  // ---- a step

  DEVICE void make_maps(int index, int position) const {
    Map y, v;
    image.fill(v, 0.f);
    image.read_map(v, p.start + index * p.image_bytes);
    kept.begin(y, v);
    for (int stage = 0; stage < p.stages; ++stage) {
      const Shared<float> of = norms.vectors(stage);
      const bool last = stage == p.stages - 1;
      for (int conv = 0; conv < 2; ++conv) {
        kept.save(v, kept.map(conv, stage));
        if (!p.post && last && conv == 1) return;
        if (!p.post) {
          norms.normalise(v, stage, conv);
          image.relu_all(v);
        } else if (conv == 1) {
          norms.normalise(v, stage, 0);
        }
        image.write_operand(v, image.operand(conv));
        convolve<false>(v, image.operand(conv), position++, [] {});
        image.each_channel(v, of + conv * C, of + conv * C, [](float& value, float bias, float) { value += bias; });
        if (p.post) image.relu_all(v);
      }
      if (p.post) {
        kept.save(v, kept.map(2, stage));
        if (last) return;
        norms.normalise(v, stage, 1);
      }
      image.each_channel(v, of + kSkipRow * C, of, [this](float& value, float skip, float) { value *= skip * p.eps; });
      if ((p.kept_rates >> stage & 1) != 0) kept.save(v, kept.rate(stage));
      kept.combine(v, p.rows[stage + 1][stage], 0.f, v);
      for (int j = 0; j < stage; ++j) kept.add(v, p.rows[stage + 1][j], kept.rate(j));
      kept.from_begin(v, 1.f, 1.f, y);
    }
  }

  // sums of one convolution's gradient by its weights, three taps, 16 input and O output channels a warp at a time
  DEVICE void weight_gradient(int stage, int conv, bool add) const {
    constexpr int kUnits = 3 * (C / 16) * (C / O);
    const int warps = thread_count() / 32, splits = C == 16 && warps >= 2 * kUnits ? 2 : 1;
    float sum[3][O / 8][4];
    for (int item = warp_index(); item < kUnits * splits; item += warps) {
      const int unit = item % kUnits, row = unit % 3, channel = unit / 3 % (C / 16) * 16,
                column = unit / 3 / (C / 16) * O;
      UNROLL
      for (int i = 0; i < 3 * O / 2; ++i) sum[i / (O / 2)][i / 4 % (O / 8)][i % 4] = 0.f;
      multiply_pixels<T, TENSOR, O>(sum, image.operand(0) + (row * p.line + channel), image.operand(1) + column, p.of,
                                    item / kUnits, splits);
      if (splits == 1) {
        put_weights(sum, stage, conv, row, channel, column, add);
      } else if (item >= kUnits) {
        UNROLL
        for (int i = 0; i < 3 * O / 8; ++i) {
          const float (&part)[4] = sum[i / (O / 8)][i % (O / 8)];
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

  DEVICE void put_weights(float (&sum)[3][O / 8][4], int stage, int conv, int row, int channel, int column,
                          bool add) const {
    const int c = p.channels, lane = lane_index();
    const int64_t first = (static_cast<int64_t>(p.sums[stage] * 2 + conv) * block_count() + block_index()) * 9 * c * c;
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
    const int pixel = image.first_pixel();
    sync_threads();  // both operands are free
    UNROLL
    for (int n = 0; n < N; ++n) {
      float sum[2] = {};
      UNROLL
      for (int m = 0; m < M; ++m) {
        UNROLL
        for (int i = 0; i < 4; ++i) sum[i % 2] += image.inside(pixel, m, i / 2) ? v[m][n][i] : 0.f;
      }
      norms.put_sums(conv, n, sum);
    }
    image.write_operand(v, image.operand(1));
    kept.restore(v, kept.map(conv, stage));
    if (!p.post) {
      norms.normalise(v, stage, conv);
      image.relu_all(v);
    } else if (conv == 1) {
      norms.normalise(v, stage, 0);
    }
    image.write_operand(v, image.operand(0));
    convolve<true>(v, image.operand(1), position,
                   [&] { weight_gradient(stage, conv, add || (p.repeats >> stage & 1) != 0); });
  }

  DEVICE void go_back(int index, int position, bool add) const {
    const Global<float> between = kept.own(p.costates, index);
    Map costate, v;
    [[maybe_unused]] Map total;
    image.fill(v, 0.f);
    if (p.upstream) {
      image.read_map(v, p.upstream + index * p.image_bytes);
    } else {
      kept.restore(v, between);
    }
    kept.begin(costate, v);
    if constexpr (kInMemory) {
      kept.save(v, between);
    } else {
      kept.combine(total, 0.f, 1.f, v);
    }
    for (int stage = p.stages - 1; stage >= 0; --stage) {
      const float after = stage + 1 < p.stages ? p.rows[stage + 1][stage] * p.eps : 0.f,
                  weight = p.update[stage] * p.eps;
      kept.from_begin(v, after, weight, costate);
      for (int j = stage + 2; j < p.stages; ++j) kept.add(v, p.rows[j][stage] * p.eps, kept.rate(j));
      for (int conv = 1; conv >= 0; --conv) {
        if (p.post) norms.template through_norm<true>(v, kept.map(conv + 1, stage), stage, conv);
        through_convolution(v, stage, conv, position++, add);
        if (!p.post) norms.template through_norm<false>(v, kept.map(conv, stage), stage, conv);
      }
      if ((p.kept_grads >> stage & 1) != 0) kept.save(v, kept.rate(stage));
      if constexpr (kInMemory) {
        kept.add_to(between, v);
      } else {
        kept.combine(total, 1.f, 1.f, v);
      }
      norms.put_channel_sums(stage, add);
    }
    if constexpr (kInMemory) {
      kept.restore(v, between);
    } else {
      kept.combine(v, 0.f, 1.f, total);
    }
    if (p.extra)
      image.each_pair([&](int m, int half, int n, int at) {
        const Vector<float, 2> pair = load_state(p.extra + index * p.image_bytes, p.state, at);
        v[m][n][2 * half] += pair[0];
        v[m][n][2 * half + 1] += pair[1];
      });
    if (p.result) {
      image.write_map(v, p.result + index * p.image_bytes);
    } else {
      kept.save(v, between);
    }
  }

  DEVICE void run() const {
    image.clear_operands();
    fetch(0);
    copy_async_commit();
    int position = 0;
    for (int index = block_index(); index < p.images; index += block_count()) {
      norms.load_vectors(index);
      make_maps(index, position);
      go_back(index, position + forward_count(), index != block_index());
      position += count();
    }
  }
};

template <typename T, bool TENSOR, int C>
KERNEL_MIN_BLOCKS(kMostThreads, 1)
solve_image_back(GRID_CONSTANT BackwardArguments<T> p) { ImageBackward<T, TENSOR, C>(p).run(); }

// ---- launch

template <typename T, bool TENSOR>
void launch_step_back(const ConvSolveBackward& p, const SolveBackwardPlan& plan, const StepBack& step) {
  BackwardArguments<T> a{};
  describe_image(a, p, plan.channels, 2);
  a.packed = static_cast<const T*>(p.packed);
  a.parameters = p.parameters;
  const ConvLayout layout{plan.channels, sizeof(T)};
  const BackwardArrays arrays =
      backward_arrays(a.vectors, plan.channels, p.stages, plan.threads / (32 * layout.warps_n()));
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
  a.repeats = step.sums->repeats;
  std::copy_n(step.sums->of, p.stages, a.sums);
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
