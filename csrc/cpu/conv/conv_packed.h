// Weights of a convolution at every slot, in the domain of frequencies, kept from call to call while they stay the
// same.
#pragma once

#include <memory>

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

// sum_k w_k node_k: the node itself where that is all, else written to `memory`
template <typename T>
const T* combine_nodes(const BasisWeights& terms, const T* nodes, int64_t size, T* memory) {
  if (terms.size() == 1 && terms[0].second == 1.0) return nodes + terms[0].first * size;
  for (int64_t i = 0; i < size; ++i) memory[i] = T(0);
  for (const auto& [k, w] : terms) {
    const T factor = static_cast<T>(w);
    for (int64_t i = 0; i < size; ++i) memory[i] += factor * nodes[k * size + i];
  }
  return memory;
}

// One slot into its place.
template <typename T>
void pack_slot(const SolveSpec&, const ConvKernels<T>&, const T* nodes, int64_t slot, const Packed<T>&, int64_t place);

// All slots of both convolutions. `both`: those of the data gradient too.
template <typename T>
struct PackedPair {
  std::shared_ptr<const Packed<T>> conv[2];
};
template <typename T>
PackedPair<T> pack_all(const SolveSpec&, const ConvKernels<T>&, const T* const* nodes, const WeightId* ids, bool both);

}  // namespace contnet_fast
