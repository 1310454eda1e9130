// theta(t) of every slot: node tensors combined and padded, weights transformed.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/conv/conv_packed.h"

namespace contnet_fast {

// Parameters at one t. Vectors have `padded` entries, zero beyond the channels except 1 / std.
template <typename T>
struct Theta {
  const T *transformed[2], *backward[2];  // [frequencies][ci][co] and [co][ci]
  T *bias[2], *gamma[2], *beta[2];
  T *mean[2], *rstd[2];               // of running statistics
  T *scale[2], *shift[2];             // gamma / std and beta - mean gamma / std, of running statistics
  T *gain, *scale_gain, *shift_gain;  // eps * skip everywhere; the second norm's affine function times it
  T gain_value;
};

template <typename T>
class Thetas {
 public:
  Thetas(const SolveSpec& spec, const ConvKernels<T>& kernels, const T* const* nodes, const WeightId* ids,
         bool backward)
      : spec_(spec), kernels_(kernels), nodes_(nodes) {
    const int64_t n = static_cast<int64_t>(spec.grid.slots.size());
    all_ = n * (backward ? 4 : 2) * spec.map.weights() * static_cast<int64_t>(sizeof(T)) <= kAllSlotsBytes;
    if (all_) {
      packed_ = pack_all(spec.map, spec.grid, kernels, weights(), ids, backward);
    } else {
      packed_.resize(2);
      for (auto& conv : packed_) {
        auto one = std::make_shared<Packed<T>>();
        one->size = spec.map.weights();
        one->both = backward;
        one->memory.resize((backward ? 2 : 1) * one->size);
        conv = one;
      }
    }
    memory_.resize((all_ ? n : 1) * vectors());
    thetas_.resize(all_ ? n : 1);
    for (int64_t slot = 0; all_ && slot < n; ++slot) fill(slot, slot);
  }

  // Every slot is at hand at once, so that threads may be at different evaluations.
  bool all() const { return all_; }

  const Theta<T>& at(int evaluation) {
    const int slot = spec_.grid.slot_of[evaluation];
    if (all_) return thetas_[slot];
    if (slot != current_) {
      pack_slot(spec_.map, spec_.grid.slots[slot], kernels_, weights(), packed_);
      fill(slot, 0);
      current_ = slot;
    }
    return thetas_[0];
  }

  // gamma / std and beta - mean gamma / std
  void affine(const Theta<T>& theta, int i, const T* mean, const T* rstd, T* scale, T* shift) const {
    for (int c = 0; c < spec_.map.padded; ++c) {
      scale[c] = theta.gamma[i][c] * rstd[c];
      shift[c] = theta.beta[i][c] - mean[c] * scale[c];
    }
  }

 private:
  static constexpr int64_t kAllSlotsBytes = int64_t(128) << 20;

  std::vector<const T*> weights() const { return {nodes_[kWeight1], nodes_[kWeight2]}; }
  int64_t vectors() const {
    return int64_t(2 * 7 + 3) * spec_.map.padded;
  }  // of each convolution's norm, and the gain's

  void vector(int node, int slot, T missing, T* out) const {
    const int channels = spec_.map.channels;
    std::fill_n(out, spec_.map.padded, T(0));
    if (nodes_[node] == nullptr) return std::fill_n(out, channels, missing), void();
    const T* values = combine_nodes(spec_.grid.slots[slot], nodes_[node], channels, channels, out);
    if (values != out) std::copy_n(values, channels, out);
  }

  void fill(int64_t slot, int64_t place) {
    const int padded = spec_.map.padded;
    Theta<T>& theta = thetas_[place];
    T* p = memory_.data() + place * vectors();
    auto next = [&] { return std::exchange(p, p + padded); };
    for (int i = 0; i < 2; ++i) {
      theta.transformed[i] = packed_[i]->transformed(place);
      theta.backward[i] = packed_[i]->backward(place);
      theta.bias[i] = next(), theta.gamma[i] = next(), theta.beta[i] = next(), theta.mean[i] = next();
      theta.rstd[i] = next(), theta.scale[i] = next(), theta.shift[i] = next();
      vector(i ? kBias2 : kBias1, slot, T(0), theta.bias[i]);
      vector(i ? kGamma2 : kGamma1, slot, T(1), theta.gamma[i]);
      vector(i ? kBeta2 : kBeta1, slot, T(0), theta.beta[i]);
      vector(i ? kMean2 : kMean1, slot, T(0), theta.mean[i]);
      vector(i ? kVar2 : kVar1, slot, T(1), theta.rstd[i]);
      for (int c = 0; c < padded; ++c) {
        const T var =
            spec_.norm == Norm::batch ? std::max(theta.rstd[i][c], T(0)) + static_cast<T>(spec_.norm_eps) : T(1);
        theta.rstd[i][c] = T(1) / std::sqrt(var);
      }
      affine(theta, i, theta.mean[i], theta.rstd[i], theta.scale[i], theta.shift[i]);
    }
    theta.gain = next(), theta.scale_gain = next(), theta.shift_gain = next();
    T skip = T(1);
    if (nodes_[kSkip]) skip = *combine_nodes(spec_.grid.slots[slot], nodes_[kSkip], 1, 1, &theta.gain_value);
    theta.gain_value = static_cast<T>(spec_.eps) * skip;
    std::fill_n(theta.gain, padded, theta.gain_value);
    for (int c = 0; c < padded; ++c) {
      theta.scale_gain[c] = theta.scale[1][c] * theta.gain_value;
      theta.shift_gain[c] = theta.shift[1][c] * theta.gain_value;
    }
  }

  const SolveSpec& spec_;
  const ConvKernels<T>& kernels_;
  const T* const* nodes_;
  bool all_ = false;
  int current_ = -1;
  PackedAll<T> packed_;
  Buffer<T> memory_;
  std::vector<Theta<T>> thetas_;
};

}  // namespace contnet_fast
