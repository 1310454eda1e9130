// theta(t) of every slot: node tensors combined, padded, and weights transformed.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../include/conv_solve.h"

namespace contnet_fast {

// Memory aligned to a cache line, not initialised.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t n) { resize(n); }
  void resize(int64_t n) {
    if (n <= size_) return;
    void* p = std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64);
    if (p == nullptr) throw std::bad_alloc();
    memory_.reset(static_cast<T*>(p));
    size_ = n;
  }
  T* data() const { return memory_.get(); }
  void zero(int64_t n) { std::fill_n(data(), n, T(0)); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T[], Free> memory_;
  int64_t size_ = 0;
};

// Working memory of the calling thread; it outlives the call.
template <typename T>
T* thread_scratch(int64_t n) {
  thread_local Buffer<T> buffer;
  buffer.resize(n);
  return buffer.data();
}

// Parameters at one t. Vectors have `padded` entries, zero beyond the channels (1 / std: one).
template <typename T>
struct Theta {
  const T* weights[2];             // [co][ci][3][3]
  T *transformed[2], *backward[2];  // [16][ci][co], [16][co][ci]
  T *bias[2], *gamma[2], *beta[2];
  T *mean[2], *rstd[2];    // of running statistics
  T *scale[2], *shift[2];  // gamma / std and beta - mean gamma / std, of running statistics
  T *gain, *scale_gain, *shift_gain;  // eps * skip everywhere; the second norm's affine function times it
  T gain_value;
};

template <typename T>
class Thetas {
 public:
  Thetas(const SolveSpec& spec, const ConvKernels<T>& kernels, const T* const* nodes, bool backward)
      : spec_(spec), kernels_(kernels), nodes_(nodes), backward_(backward) {
    const int64_t n = static_cast<int64_t>(spec.slots.size());
    all_ = n * slot_size() * static_cast<int64_t>(sizeof(T)) <= kMostBytes;
    memory_.resize((all_ ? n : 1) * slot_size());
    thetas_.resize(all_ ? n : 1);
    if (all_) {
      at::parallel_for(0, 2 * n, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) fill(i / 2, i / 2, i % 2);
      });
    }
  }

  // Every slot is at hand at once, so that threads may be at different evaluations.
  bool all() const { return all_; }

  const Theta<T>& at(int evaluation) {
    const int slot = spec_.slot[evaluation];
    if (all_) return thetas_[slot];
    if (slot != current_) {
      at::parallel_for(0, 2, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) fill(slot, 0, i);
      });
      current_ = slot;
    }
    return thetas_[0];
  }

 private:
  static constexpr int64_t kMostBytes = int64_t(96) << 20;

  int64_t raw() const { return (int64_t(9) * spec_.map.channels * spec_.map.channels + 15) / 16 * 16; }
  int64_t half() const { return raw() + (backward_ ? 2 : 1) * spec_.map.weights() + 7 * spec_.map.padded; }
  int64_t slot_size() const { return 2 * half() + 3 * spec_.map.padded; }

  // sum_k w_k node_k[i]; the node itself where that is all
  const T* combine(int node, int slot, int64_t size, T* memory) const {
    const T* values = nodes_[node];
    const auto& terms = spec_.slots[slot];
    if (terms.size() == 1 && terms[0].second == 1.0) return values + terms[0].first * size;
    for (int64_t i = 0; i < size; ++i) memory[i] = T(0);
    for (const auto& [k, w] : terms) {
      const T factor = static_cast<T>(w);
      for (int64_t i = 0; i < size; ++i) memory[i] += factor * values[k * size + i];
    }
    return memory;
  }

  void vector(int node, int slot, T missing, T* out) const {
    const int channels = spec_.map.channels;
    std::fill_n(out, spec_.map.padded, T(0));
    if (nodes_[node] == nullptr) return std::fill_n(out, channels, missing), void();
    const T* values = combine(node, slot, channels, out);
    if (values != out) std::copy_n(values, channels, out);
  }

  // one of the two convolutions and norms of a slot
  void fill(int64_t slot, int64_t place, int i) {
    const Geometry& g = spec_.map;
    Theta<T>& theta = thetas_[place];
    T* p = memory_.data() + place * slot_size() + i * half();
    theta.weights[i] = combine(i ? kWeight2 : kWeight1, slot, int64_t(9) * g.channels * g.channels, p);
    p += raw();
    theta.transformed[i] = p;
    p += g.weights();
    theta.backward[i] = backward_ ? p : nullptr;
    p += backward_ ? g.weights() : 0;
    kernels_.pack(g, theta.weights[i], theta.transformed[i], theta.backward[i],
                  thread_scratch<T>(int64_t(9) * g.channels * g.padded));
    T** vectors[7] = {&theta.bias[i], &theta.gamma[i], &theta.beta[i], &theta.mean[i],
                      &theta.rstd[i], &theta.scale[i], &theta.shift[i]};
    for (T** v : vectors) *v = p, p += g.padded;
    vector(i ? kBias2 : kBias1, slot, T(0), theta.bias[i]);
    vector(i ? kGamma2 : kGamma1, slot, T(1), theta.gamma[i]);
    vector(i ? kBeta2 : kBeta1, slot, T(0), theta.beta[i]);
    vector(i ? kMean2 : kMean1, slot, T(0), theta.mean[i]);
    vector(i ? kVar2 : kVar1, slot, T(1), theta.rstd[i]);
    for (int c = 0; c < g.padded; ++c) {
      const T var = spec_.norm == Norm::batch ? std::max(theta.rstd[i][c], T(0)) + static_cast<T>(spec_.norm_eps) : T(1);
      theta.rstd[i][c] = T(1) / std::sqrt(var);
    }
    affine(theta, i, theta.mean[i], theta.rstd[i], theta.scale[i], theta.shift[i]);
    if (i == 0) return;
    theta.gain = p;
    theta.scale_gain = p + g.padded;
    theta.shift_gain = p + 2 * g.padded;
    T skip = T(1);
    if (nodes_[kSkip]) skip = *combine(kSkip, slot, 1, &theta.gain_value);
    theta.gain_value = static_cast<T>(spec_.eps) * skip;
    std::fill_n(theta.gain, g.padded, theta.gain_value);
    for (int c = 0; c < g.padded; ++c) {
      theta.scale_gain[c] = theta.scale[1][c] * theta.gain_value;
      theta.shift_gain[c] = theta.shift[1][c] * theta.gain_value;
    }
  }

 public:
  // gamma / std and beta - mean gamma / std
  void affine(const Theta<T>& theta, int i, const T* mean, const T* rstd, T* scale, T* shift) const {
    for (int c = 0; c < spec_.map.padded; ++c) {
      scale[c] = theta.gamma[i][c] * rstd[c];
      shift[c] = theta.beta[i][c] - mean[c] * scale[c];
    }
  }

 private:
  const SolveSpec& spec_;
  const ConvKernels<T>& kernels_;
  const T* const* nodes_;
  bool backward_, all_ = false;
  int current_ = -1;
  Buffer<T> memory_;
  std::vector<Theta<T>> thetas_;
};

}  // namespace contnet_fast
