// Types that kernels, launchers and the emulator share. No CUDA header is needed.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "runtime/limits.h"

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

namespace contnet_fast::cuda {

constexpr int kMostStages = limits::MOST_STAGES;  // of a scheme

enum class Scalar : int32_t { f32, f64, bf16, f16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// N consecutive values that move in one instruction; addresses are multiples of its size (at most 16 bytes)
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  static_assert(sizeof(T) * N <= 16, "one instruction moves at most 16 bytes");
  T v[N];
  HOST_DEVICE T& operator[](int i) { return v[i]; }
  HOST_DEVICE const T& operator[](int i) const { return v[i]; }
};

// Sums of values of type T: float, for double in double.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename To, typename From>
HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<From>, "of equal size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// What a launcher may ask of the current device.
struct DeviceFacts {
  int32_t processors;     // multiprocessors
  int32_t cluster_limit;  // blocks of a cluster; 1: it has none
  int64_t shared_limit;   // bytes of shared memory that a block may have
};

DeviceFacts current_device();

// Launches of kernels by this thread since it began.
int64_t& launch_count();

// What a launch needs besides the kernel and its arguments.
struct Grid {
  const char* name;        // of the kernel, for messages
  int64_t blocks;          // along x
  int threads;             // of a block, a multiple of 32
  int64_t shared = 0;      // bytes of dynamic shared memory
  int cluster = 1;         // blocks of a cluster, along x
  void* stream = nullptr;  // cudaStream_t
  int64_t rows = 1;        // blocks along y
};

}  // namespace contnet_fast::cuda
