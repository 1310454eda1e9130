// Time grids on a device.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <cstdint>
#include <future>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "runtime/time_grid.h"

namespace contnet_fast {

struct DeviceGrid {
  TimeGrid host;
  int32_t count = 0;        // of slots
  at::Tensor slot_of, mix;  // [evaluation], [slot, basis]
};

using GridKey = std::tuple<int, at::ScalarType, int64_t, std::vector<int32_t>, std::vector<BasisWeights>>;

inline DeviceGrid to_device(const TimeGrid& host, at::Device device, at::ScalarType type) {
  DeviceGrid grid{host, static_cast<int32_t>(host.slots.size()), {}, {}};
  std::vector<double> mix(host.slots.size() * host.basis);
  for (size_t slot = 0; slot < host.slots.size(); ++slot)
    for (const auto& [k, weight] : host.slots[slot]) mix[slot * host.basis + k] = weight;
  grid.slot_of = at::tensor(host.slot_of, at::kInt).to(device);
  grid.mix = at::tensor(mix, at::kDouble).to(type).to(device).view({grid.count, host.basis});
  return grid;
}

// What `make` returns, made on a thread of its own: the memory pool that this one may allocate from (torch.compile's
// CUDA graphs) is given back.
template <typename Make>
auto outside_of_graph_pool(Make make) {
  return std::async(std::launch::async, make).get();
}

// With the mix in `type`. Copied to the device once for each grid and kept: captured graphs have its address. Never
// destroyed, as the allocator may be gone by then.
inline const DeviceGrid& grid_of(const char* op, const TimeGrid& host, at::Device device, at::ScalarType type) {
  static std::mutex guard;
  static auto& grids = *new std::map<GridKey, DeviceGrid>;
  const GridKey key{device.index(), type, host.basis, host.slot_of, host.slots};
  const std::lock_guard<std::mutex> lock(guard);
  const auto known = grids.find(key);
  if (known != grids.end()) return known->second;
  TORCH_CHECK(c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None, op,
              " on backend 'cuda' is used for the first time with this time grid while a CUDA graph is captured, which "
              "cannot copy its table; run the same call once before the capture");
  return grids.emplace(key, outside_of_graph_pool([&] { return to_device(host, device, type); })).first->second;
}

}  // namespace contnet_fast
