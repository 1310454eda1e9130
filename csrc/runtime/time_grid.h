// A time grid as its backends read it. No torch types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

namespace contnet_fast {

// Weights of basis functions at one time, ((k, phi_k(t)), ...), by ascending k, none of them zero.
using BasisWeights = std::vector<std::pair<int, double>>;

// Evaluations that read the same theta(t) share a slot. Weights are compared as doubles.
struct TimeGrid {
  int64_t basis;                    // basis functions
  std::vector<int32_t> slot_of;     // [evaluation]
  std::vector<BasisWeights> slots;  // in the order in which evaluations first read them
};

// From flat lists: how many basis functions each evaluation reads, then theirs and their weights, one after another.
//
// Throws std::out_of_range: a basis function outside `basis`, or lists of different lengths.
inline TimeGrid resolve_time_grid(const int64_t* counts, std::size_t evaluations, const int64_t* cells,
                                  const double* weights, std::size_t terms, int64_t basis) {
  TimeGrid grid{basis, {}, {}};
  std::map<BasisWeights, int32_t> known;
  std::size_t next = 0;
  for (std::size_t e = 0; e < evaluations; ++e) {
    std::map<int, double> sums;
    for (int64_t i = 0; i < counts[e]; ++i, ++next) {
      if (next >= terms || cells[next] < 0 || cells[next] >= basis)
        throw std::out_of_range("a basis function outside the nodes");
      sums[static_cast<int>(cells[next])] += weights[next];
    }
    BasisWeights slot;
    for (const auto& [cell, weight] : sums)
      if (weight != 0.0) slot.emplace_back(cell, weight);
    const auto [place, is_new] = known.emplace(slot, static_cast<int32_t>(grid.slots.size()));
    if (is_new) grid.slots.push_back(std::move(slot));
    grid.slot_of.push_back(place->second);
  }
  if (next != terms) throw std::out_of_range("a time grid of other sizes");
  return grid;
}

}  // namespace contnet_fast
