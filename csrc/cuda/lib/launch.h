// Launches through the CUDA runtime. Included by instructions.h, and by tests with a runtime that only counts.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/lib/types.h"

namespace contnet_fast::cuda {

inline void check(cudaError_t status, const char* name) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next one who asks is told of it
  throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(status));
}

inline int of_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "device");
  return value;
}

// `kernel`: any; clusters take code for sm_90 or newer as well as such a chip
inline DeviceFacts device_facts(void (*kernel)()) {
  cudaFuncAttributes code;
  check(cudaFuncGetAttributes(&code, kernel), "device");
  return {of_device(cudaDevAttrMultiProcessorCount),
          of_device(cudaDevAttrClusterLaunch) != 0 && code.ptxVersion >= 90 ? 8 : 1,
          of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

constexpr int64_t kSharedOfAnyKernel = 48 * 1024;  // bytes that a block may have unasked
constexpr int kPortableCluster = 8;                // blocks, likewise

// What `kernel` may use of the current device, asked for once for each of them: the device's limit of shared memory,
// whatever the launch, as launches of other threads ask for it too.
inline void allow_large_blocks(const Grid& grid, const void* kernel) {
  static std::mutex guard;
  static std::set<std::tuple<const void*, int, bool>> allowed;
  const bool large_cluster = grid.cluster > kPortableCluster;
  if (grid.shared <= kSharedOfAnyKernel && !large_cluster) return;
  int device = 0;
  check(cudaGetDevice(&device), "device");
  const std::lock_guard<std::mutex> lock(guard);
  if (allowed.count({kernel, device, large_cluster}) != 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             of_device(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
        grid.name);
  if (large_cluster) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), grid.name);
  allowed.insert({kernel, device, large_cluster});
}

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.blocks == 0 || grid.rows == 0) return;
  allow_large_blocks(grid, reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared);
  config.stream = static_cast<cudaStream_t>(grid.stream);
  config.attrs = &attribute;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  ++launch_count();
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), grid.name);
}

}  // namespace contnet_fast::cuda
