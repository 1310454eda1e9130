// The pieces of a pass over the evaluations of a solve: maps, moments, and one evaluation of the field.
#pragma once

#include "cpu/conv/conv_moments.h"
#include "cpu/conv/conv_ranges.h"

namespace contnet_fast {

// One map for every image, or one for whichever image a thread is at. Those of saved tensors are not writable.
template <typename T>
struct Maps {
  const T* data = nullptr;
  T* owned = nullptr;  // the same memory, or null
  int64_t stride = 0;
  static Maps working(T* memory, int64_t stride) { return {memory, memory, stride}; }
  static Maps saved(const T* memory, int64_t stride) { return {memory, nullptr, stride}; }
  const T* operator()(int64_t b) const { return data + b * stride; }
  T* writable(int64_t b) const { return owned + b * stride; }
};

// Affine functions of the two norms: one for all images (stride 0), or one for each.
template <typename T>
struct Affine {
  T *scale = nullptr, *shift = nullptr;
  int64_t stride = 0;
};

template <typename T>
struct Moments {  // mean and 1 / std
  const T *mean, *rstd;
  int64_t stride;
};

// Where the maps of the pass are. `input(i, s)` of stage 0 is the state at step i.
template <typename T>
struct Places {
  std::vector<Maps<T>> state;                 // [n_steps + 1]
  std::vector<Maps<T>> input, first, second;  // [evaluations]
  std::vector<Maps<T>> rate;                  // [stages], empty where no later stage needs it
  Maps<T> total;                              // the running update of a step, without its state
};

template <typename T>
class Pass {
 public:
  // Forward: `moments` are written, unless there are `known` ones.
  Pass(const SolveSpec& spec, const ConvKernels<T>& kernels, Thetas<T>& thetas, T* moments, const T* known)
      : Pass(spec, kernels, thetas, known ? known : moments, known ? nullptr : moments, false) {}

  // A step is gone through again for what its backward pass reads, with `moments` that are known.
  static Pass replay(const SolveSpec& spec, const ConvKernels<T>& kernels, Thetas<T>& thetas, const T* moments) {
    return Pass(spec, kernels, thetas, moments, nullptr, true);
  }

  const SolveSpec& spec;
  const Geometry& g;
  const ConvKernels<T>& kernels;
  Thetas<T>& thetas;
  Buffer<T> partial;    // sums of units, [batch][units][2][padded]
  double values = 0.0;  // of a channel on all ranks, at the last norm

  int64_t partial_size() const { return int64_t(g.units) * 2 * g.padded; }
  int evaluation(int i, int s) const { return i * spec.stages + s; }

  // A rate that a later stage than the next reads.
  bool keeps_rate(int s) const {
    for (int r = s + 2; r < spec.stages; ++r)
      if (moves(spec.rows[r][s])) return true;
    return false;
  }

  // Order "post" where the second map is kept, or its norm waits for moments.
  bool combines_later() const { return spec.post && (spec.dynamic() || spec.keep == Keep::everything || replay_); }

  Moments<T> moments(int j, int norm, const Theta<T>& theta) const {
    if (!spec.dynamic()) return {theta.mean[norm], theta.rstd[norm], 0};
    const int64_t rows = spec.moment_rows();
    const T* p = moments_ + moments_place(j, norm);
    return {p, p + rows * g.padded, rows > 1 ? g.padded : 0};
  }

  // `map` as the convolution after norm `i` sees it
  Operand<T> normalised(const T* map, int i, const Theta<T>& theta, int64_t b, bool relu) const {
    Operand<T> in;
    in.map = map;
    in.relu = relu;
    if (spec.norm == Norm::none) return in;
    in.scale = spec.dynamic() ? affine_[i].scale + b * affine_[i].stride : theta.scale[i];
    in.shift = spec.dynamic() ? affine_[i].shift + b * affine_[i].stride : theta.shift[i];
    return in;
  }

  // One evaluation of the field and what the scheme does with it. `statistics`: unbiased variances and means to report.
  template <typename Range>
  void evaluate(const Range& range, const Places<T>& at, int i, int s, T* statistics) {
    const int j = evaluation(i, s);
    const bool last = s + 1 == spec.stages, end = last && i + 1 == spec.n_steps;
    thetas.at(j);  // made here, not by many threads below
    if (!spec.post) {
      if (j == 0 && spec.dynamic() && new_moments_)
        range.over_images([&](int64_t b) { moments_of(at.state[0](b), b); });
      ready_norm(range, j, 0, statistics);
    }
    range.over_units([&](const Share& share) { first(at, j, share); });
    ready_norm(range, j, spec.post ? 0 : 1, statistics);
    if (replay_ && last && !spec.post) return;
    range.over_units([&](const Share& share) { second(at, i, s, share, !end); });
    if (!combines_later()) return;
    ready_norm(range, j, 1, statistics);
    if (replay_ && last) return;
    range.over_images([&](int64_t b) { combine(at, i, s, b); });
  }

  void ready_all(int j) {  // both norms of an evaluation whose moments are known
    for (int norm = 0; norm < 2 && spec.dynamic(); ++norm)
      for (int64_t row = 0; row < spec.moment_rows(); ++row) set_affine(j, norm, row);
  }

 private:
  Pass(const SolveSpec& spec, const ConvKernels<T>& kernels, Thetas<T>& thetas, const T* moments, T* new_moments,
       bool replay)
      : spec(spec),
        g(spec.map),
        kernels(kernels),
        thetas(thetas),
        replay_(replay),
        moments_(moments),
        new_moments_(new_moments) {
    for (int i = 0; i < 2; ++i) {
      const int64_t rows = std::max<int64_t>(spec.moment_rows(), 1);
      own_[i].resize(2 * rows * g.padded);
      affine_[i] = {own_[i].data(), own_[i].data() + rows * g.padded, rows > 1 ? g.padded : 0};
    }
    partial.resize(spec.batch * partial_size());
  }

  int64_t moments_place(int j, int norm) const { return (int64_t(j) * 2 + norm) * 2 * spec.moment_rows() * g.padded; }

  template <typename Range>
  void ready_norm(const Range& range, int j, int norm, T* statistics) {
    if (!spec.dynamic()) return;
    if (!new_moments_ && spec.batch_statistics) return set_affine(j, norm, 0);
    if (!new_moments_) return range.over_images([&](int64_t b) { set_affine(j, norm, b); });
    if (!spec.batch_statistics)
      return range.over_images([&](int64_t b) { finish_moments(j, norm, b, b + 1, nullptr); });
    finish_moments(j, norm, 0, spec.batch, statistics + (int64_t(j) * 4 + 2 * norm) * g.channels);
  }

  // from moments that are known; in order "post" the second one includes the gain
  void set_affine(int j, int norm, int64_t row) {
    const Theta<T>& theta = thetas.at(j);
    const Moments<T> m = moments(j, norm, theta);
    T *scale = affine_[norm].scale + row * affine_[norm].stride,
      *shift = affine_[norm].shift + row * affine_[norm].stride;
    thetas.affine(theta, norm, m.mean + row * m.stride, m.rstd + row * m.stride, scale, shift);
    if (!spec.post || norm == 0) return;
    for (int c = 0; c < g.padded; ++c) scale[c] *= theta.gain_value, shift[c] *= theta.gain_value;
  }

  void first(const Places<T>& at, int j, const Share& share) {
    const Theta<T>& theta = thetas.at(j);
    convolve(kernels, g, share, [&](int64_t b, ConvJob<T>& job) {
      if (spec.post)
        job.in.map = at.input[j](b);
      else
        job.in = normalised(at.input[j](b), 0, theta, b, true);
      job.weights = theta.transformed[0];
      job.result.bias = theta.bias[0];
      job.result.relu = spec.post;
      job.result.destinations = 1;
      job.result.destination[0].out = at.first[j].writable(b);
      emit_moments(job.result, b);
    });
  }

  void second(const Places<T>& at, int i, int s, const Share& share, bool more) {
    const int j = evaluation(i, s);
    const Theta<T>& theta = thetas.at(j);
    convolve(kernels, g, share, [&](int64_t b, ConvJob<T>& job) {
      Result<T>& r = job.result;
      job.in = normalised(at.first[j](b), spec.post ? 0 : 1, theta, b, !spec.post);
      job.weights = theta.transformed[1];
      r.bias = theta.bias[1];
      r.relu = spec.post;
      if (combines_later()) {
        r.destinations = 1;
        r.destination[0].out = at.second[j].writable(b);
      } else {
        r.scale = spec.post ? theta.scale_gain : theta.gain;
        r.shift = spec.post ? theta.shift_gain : nullptr;
        r.destinations = destinations(at, i, s, b, nullptr, r.destination);
      }
      if (more || spec.post) emit_moments(r, b);
    });
  }

  void combine(const Places<T>& at, int i, int s, int64_t b) {
    const int j = evaluation(i, s);
    const Theta<T>& theta = thetas.at(j);
    Operand<T> in = normalised(at.second[j](b), 1, theta, b, false);
    if (!spec.dynamic()) in.scale = theta.scale_gain, in.shift = theta.shift_gain;
    T* k = at.rate[s].owned ? at.rate[s].writable(b) : thread_scratch<T>(g.map());
    kernels.write(g, in, k, 0, g.height);
    Destination<T> d[3];
    const int n = destinations(at, i, s, b, k, d);
    for (int m = 0; m < n; ++m) kernels.combine(g, d[m], 0, g.height);
  }

  void emit_moments(Result<T>& r, int64_t b) {
    if (!spec.dynamic() || !new_moments_) return;
    r.sums = Sums::moments;
    r.partial = partial.data() + b * partial_size();
  }

  void moments_of(const T* map, int64_t b) {
    Result<T> r;
    emit_moments(r, b);
    for (int u = 0; u < g.units; ++u) kernels.sum(g, map, r, u, {0, g.padded});
  }

  // mean and 1 / std of images [from, to) by merging the sums of their units in a fixed order
  void finish_moments(int j, int norm, int64_t from, int64_t to, T* statistics) {
    const int64_t row = spec.batch_statistics ? 0 : from;
    T* const new_mean = new_moments_ + moments_place(j, norm) + row * g.padded;
    T* const new_rstd = new_mean + spec.moment_rows() * g.padded;
    const int padded = g.padded, group = spec.norm == Norm::sample ? g.channels / spec.groups : 1;
    double n = static_cast<double>(to - from) * g.height * g.width * group;
    std::vector<double> mean(padded), square(padded);
    merge_units(g, partial.data(), from, to, n, mean, square, [&](std::vector<double>& v) {  // over those of a group
      for (int c = 0; group > 1 && c < g.channels; c += group) {
        double sum = 0.0;
        for (int k = 0; k < group; ++k) sum += v[c + k];
        std::fill_n(v.begin() + c, group, sum);
      }
    });
    if (spec.gather) n = merge_ranks(n, mean, square);
    for (int c = 0; c < padded; ++c) {
      new_mean[c] = static_cast<T>(mean[c]);
      new_rstd[c] = static_cast<T>(1.0 / std::sqrt(square[c] / n + spec.norm_eps));
    }
    for (int c = 0; statistics && c < g.channels; ++c) {
      statistics[c] = static_cast<T>(mean[c]);
      statistics[g.channels + c] = static_cast<T>(square[c] / std::max(n - 1.0, 1.0));
    }
    set_affine(j, norm, row);
  }

  // Count, means and squared distances of this rank become those of all (contnet_fast/reference/batch_norm.py). Those of
  // no value at all count as of one.
  double merge_ranks(double n, std::vector<double>& mean, std::vector<double>& square) {
    const int channels = g.channels;
    std::vector<double> row{n};
    row.insert(row.end(), mean.begin(), mean.begin() + channels);
    row.insert(row.end(), square.begin(), square.begin() + channels);
    const size_t width = row.size();
    const std::vector<double> rows = spec.gather(row);
    values = 0.0;
    for (size_t r = 0; r < rows.size(); r += width) values += rows[r];
    const double all = std::max(values, 1.0);
    std::fill(mean.begin(), mean.end(), 0.0), std::fill(square.begin(), square.end(), 0.0);
    for (size_t r = 0; r < rows.size(); r += width)
      for (int c = 0; c < channels; ++c) mean[c] += rows[r] / all * rows[r + 1 + c];
    for (size_t r = 0; r < rows.size(); r += width)
      for (int c = 0; c < channels; ++c) {
        const double apart = rows[r + 1 + c] - mean[c];
        square[c] += rows[r + 1 + channels + c] + rows[r] * apart * apart;
      }
    return all;
  }

  // Where the scheme moves at all, in the precision that it moves in.
  static bool moves(double coefficient) { return static_cast<T>(coefficient) != T(0); }

  // next input, running update, and the rate where it is needed later. `k` where the rate is a map already. The state
  // is the last term. After the last stage it may lie where `out` is: at most four terms are read before that is
  // written.
  int destinations(const Places<T>& at, int i, int s, int64_t b, const T* k, Destination<T>* d) {
    const T* y = at.state[i](b);
    const T b_s = static_cast<T>(spec.update[s]);
    bool begun = false;
    for (int r = 0; r < s; ++r) begun = begun || moves(spec.update[r]);
    int count = 0;
    auto next = [&](T* out, T coefficient) -> Destination<T>& {  // begins with this rate
      Destination<T>& one = d[count++];
      one.out = out;
      one.own = k ? T(0) : coefficient;
      if (k && coefficient != T(0)) one.add(k, coefficient);
      return one;
    };
    if (s + 1 == spec.stages) {
      Destination<T>& state = next(at.state[i + 1].writable(b), b_s);
      if (begun) state.add(at.total(b), T(1));
      state.add(y, T(1));
      return count;
    }
    const auto& row = spec.rows[s + 1];
    Destination<T>& input = next(at.input[evaluation(i, s + 1)].writable(b), static_cast<T>(row[s]));
    for (int r = 0; r < s; ++r)
      if (moves(row[r])) input.add(at.rate[r](b), static_cast<T>(row[r]));
    input.add(y, T(1));
    if (b_s != T(0) && !replay_) {
      Destination<T>& total = next(at.total.writable(b), b_s);
      if (begun) total.add(at.total(b), T(1));
    }
    if (keeps_rate(s) && k == nullptr) next(at.rate[s].writable(b), T(1));
    return count;
  }

  bool replay_;
  const T* moments_;
  T* new_moments_;  // the same, or null where they are known
  Buffer<T> own_[2];
  Affine<T> affine_[2];
};

}  // namespace contnet_fast
