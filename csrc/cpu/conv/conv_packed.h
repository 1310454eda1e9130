// Weights of a convolution at every slot, in the domain of frequencies, kept from call to call while they stay the
// same.
#pragma once

#include <ATen/Parallel.h>

#include <memory>
#include <vector>

#include "cpu/conv/conv_solve.h"
#include "runtime/pool.h"

namespace contnet_fast {

template <typename T>
struct Packed {
  Buffer<T> memory;
  int64_t size = 0;  // of one slot's weights
  bool both = false;
  T* transformed(int64_t slot) const { return memory.data() + slot * (both ? 2 : 1) * size; }  // [frequencies][ci][co]
  T* backward(int64_t slot) const { return both ? transformed(slot) + size : nullptr; }        // [frequencies][co][ci]
};

// `size` values of sum_k w_k node_k, whose nodes lie `apart`: of the node itself where that is all, else written to
// `memory`
template <typename T>
const T* combine_nodes(const BasisWeights& terms, const T* nodes, int64_t apart, int64_t size, T* memory) {
  if (terms.size() == 1 && terms[0].second == 1.0) return nodes + terms[0].first * apart;
  for (int64_t i = 0; i < size; ++i) memory[i] = T(0);
  for (const auto& [k, w] : terms) {
    const T factor = static_cast<T>(w);
    for (int64_t i = 0; i < size; ++i) memory[i] += factor * nodes[k * apart + i];
  }
  return memory;
}

// Output channels in pieces that threads share, and what is done with them has scratch of its own: f(piece, channels).
template <typename F>
void over_output_channels(const Geometry& g, int64_t convolutions, const F& f) {
  constexpr int kPiece = 32;
  const int pieces = g.padded % kPiece ? 1 : g.padded / kPiece, count = g.padded / pieces;
  at::parallel_for(0, convolutions * pieces, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int first = static_cast<int>(i % pieces) * count;
      f(i / pieces, Channels{first, first + count});
    }
  });
}

// Weights of one or two convolutions. `both`: those of the data gradient too.
template <typename T>
using PackedAll = std::vector<std::shared_ptr<const Packed<T>>>;

template <typename T>
PackedAll<T> pack_all(const Geometry&, const TimeGrid&, const ConvKernels<T>&, const std::vector<const T*>& nodes,
                      const WeightId* ids, bool both);

// One slot of them into the first place.
template <typename T>
void pack_slot(const Geometry&, const BasisWeights&, const ConvKernels<T>&, const std::vector<const T*>& nodes,
               const PackedAll<T>&);

}  // namespace contnet_fast
