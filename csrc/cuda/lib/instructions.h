// The primitives as instructions of NVIDIA GPUs, sm_80 and newer. Included by primitives.h alone.
#pragma once

#include <cuda_runtime.h>

#define KERNEL(THREADS) __global__ void __launch_bounds__(THREADS)
#define KERNEL_MIN_BLOCKS(THREADS, BLOCKS) __global__ void __launch_bounds__(THREADS, BLOCKS)
#define GRID_CONSTANT const __grid_constant__
#define DEVICE __device__ __forceinline__
#define PRAGMA_TEXT(text) _Pragma(#text)
#define UNROLL PRAGMA_TEXT(unroll)
#define UNROLL_BY(COUNT) PRAGMA_TEXT(unroll COUNT)

namespace contnet_fast::cuda {

template <typename T>
using Shared = T*;
template <typename T>
using Global = T*;

// ---- where a thread is

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
DEVICE int block_count() { return static_cast<int>(gridDim.x); }
DEVICE int block_row() { return static_cast<int>(blockIdx.y); }

// x, of which the compiler knows nothing: what follows from it is computed again at each use and takes no register
// between
DEVICE int afresh(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// ---- barriers

DEVICE void sync_threads() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

// ---- memory

extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

template <typename T>
DEVICE Shared<T> shared_array(int offset, int /*count*/) {
  return reinterpret_cast<T*>(dynamic_shared_memory + offset);
}

template <typename U, typename T>
DEVICE U* pointer_cast(T* p) {
  return reinterpret_cast<U*>(p);
}

template <int N, typename T, typename I>
DEVICE Vector<std::remove_const_t<T>, N> load(T* p, I i) {
  return *reinterpret_cast<const Vector<std::remove_const_t<T>, N>*>(p + i);
}

template <int N, typename T, typename I>
DEVICE void store(T* p, I i, const Vector<T, N>& value) {
  *reinterpret_cast<Vector<T, N>*>(p + i) = value;
}

DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- asynchronous copies global -> shared

template <int BYTES, typename T, typename S>
DEVICE void copy_async(T* to, const S* from) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES)
                 : "memory");
  }
}

template <int BYTES, typename T, typename S>
DEVICE void copy_async_or_zero(T* to, const S* from, bool inside) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  const int bytes = inside ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES),
                 "r"(bytes)
                 : "memory");
  }
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- warps

template <typename T>
DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
DEVICE T shuffle_down(T value, int distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}
template <typename T>
DEVICE T shuffle_up(T value, int distance) {
  return __shfl_up_sync(0xffffffffu, value, distance);
}

template <int N, typename T>
DEVICE void ldmatrix(uint32_t (&r)[N], T* row) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const uint32_t a = shared_address(row);
  if constexpr (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
  }
}

template <int N, typename T>
DEVICE void ldmatrix_trans(uint32_t (&r)[N], T* row) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
  static_assert(sizeof(T) == 2, "ldmatrix transposes 16-bit values");
  const uint32_t a = shared_address(row);
  if constexpr (N == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(a));
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(a));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(a));
  }
}

template <typename T>
DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "operands are bf16 or f16");
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

DEVICE void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- clusters (sm_90 and newer; before, a block is a cluster of its own)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
DEVICE int cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
template <typename T>
DEVICE Shared<T> map_shared(T* p, int rank) {
  uint64_t mapped;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(mapped);
}
#else
DEVICE int cluster_rank() { return 0; }
DEVICE int cluster_size() { return 1; }
DEVICE void sync_cluster() { __syncthreads(); }
template <typename T>
DEVICE Shared<T> map_shared(T* p, int /*rank*/) {
  return p;
}
#endif

// ---- conversions

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
DEVICE float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

template <typename T>
DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    T y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  } else {
    static_assert(std::is_same_v<T, f16>, "float, bf16 or f16");
    T y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
}

// two values in a register, `low` in the lower half
template <typename T>
DEVICE uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "bf16 or f16");
  uint32_t r;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}

// the bits of x rounded to TF32, as mma_m16n8k8 takes them
DEVICE uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

}  // namespace contnet_fast::cuda

#include "cuda/lib/launch.h"
