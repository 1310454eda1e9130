// In place of CUDA's, for tests of launches: two devices, whose functions only note what they are asked.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrClusterLaunch,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaFuncAttributes {
  int ptxVersion;
};
struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
using cudaStream_t = void*;
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace runtime {
inline int device = 0;
inline bool refuses = false;  // attributes of functions
inline std::vector<std::string> asked;
}  // namespace runtime

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "refused"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = runtime::device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 232448, cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) { return found->ptxVersion = 90, cudaSuccess; }
template <typename... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, void (*)(P...)) {
  return found->ptxVersion = 90, cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute attribute, int) {
  if (runtime::refuses) return cudaErrorInvalidValue;
  runtime::asked.push_back(attribute == cudaFuncAttributeMaxDynamicSharedMemorySize ? "shared" : "cluster");
  return cudaSuccess;
}
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t*, void (*)(P...), A&&...) {
  runtime::asked.push_back("launch");
  return cudaSuccess;
}
