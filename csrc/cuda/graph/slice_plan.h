// How blocks share the columns of a state that they integrate on a graph to the end, and which graphs are refused. Host
// code alone; contnet_fast/costmodel/graph_slices.py says the same in Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

namespace contnet_fast::cuda {

constexpr int kSliceThreads = 1024;  // of a block, at most
constexpr int kSliceColumns = 4;     // of a block, at most, and no more than 16 bytes of a row
constexpr int kEdgesAtOnce = 4;      // that a lane gathers at once
constexpr int kLongLane = 32;        // edges a lane from which on a row is left to the whole warp

struct SlicePlan {
  int32_t columns, slots, threads;  // of a slice; lanes that share the edges of a row; of a block
  int64_t slices, shared;           // blocks; bytes of shared memory, more than the limit where it is refused
};

// Few columns a block while every block has a multiprocessor to itself, more where they fit. `bytes` of a value. The
// order in which a row is summed depends on `slots` and its edges, not on the columns.
inline SlicePlan plan_slices(int64_t nodes, int64_t features, int64_t edges, int64_t bytes, int64_t shared_limit,
                             int64_t processors) {
  const auto shared = [&](int64_t columns) { return 2 * nodes * columns * bytes; };
  SlicePlan plan{1, 1, 0, 0, 0};
  while (2 * plan.columns <= std::min<int64_t>(kSliceColumns, 16 / bytes) && shared(2 * plan.columns) <= shared_limit &&
         (features + plan.columns - 1) / plan.columns > processors)
    plan.columns *= 2;
  const int64_t degree = edges / std::max<int64_t>(nodes, 1);
  while (plan.slots < 32 && 2 * plan.slots * kEdgesAtOnce <= degree) plan.slots *= 2;
  plan.threads = static_cast<int32_t>(std::clamp<int64_t>((nodes * plan.slots + 31) / 32 * 32, 32, kSliceThreads));
  plan.slices = (features + plan.columns - 1) / plan.columns;
  plan.shared = shared(plan.columns);
  return plan;
}

// Why a block cannot hold the solve of a column, or nothing.
inline std::string slice_refusal(int64_t nodes, int64_t bytes, int64_t shared_limit) {
  if (2 * nodes * bytes <= shared_limit) return "";
  return std::to_string(nodes) + " nodes: two maps of one column take " + std::to_string(2 * nodes * bytes) +
         " bytes of shared memory, and a block has " + std::to_string(shared_limit);
}

}  // namespace contnet_fast::cuda
