// Warp instructions and clusters one by one, for tests/emulated/test_cuda_emulator.py.

#include "emulate/entries.h"
#include "cuda/combine/combine_launch.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {
namespace {

// C = A B of one warp, through shared memory and ldmatrix. a: [16][K]; b: [K][16], or [16][K] if `transposed`; c: [16][16].
template <typename T>
KERNEL(32) product16(Global<const T> a, Global<const T> b, bool transposed, Global<float> c) {
  constexpr int K = 32, kStride = K + 8, kStrideB = 24;
  const int l = lane_index(), g = l / 4, t = l % 4;
  Shared<T> left = shared_array<T>(0, 16 * kStride);
  Shared<T> right = shared_array<T>(16 * kStride * 2, transposed ? 16 * kStride : K * kStrideB);
  for (int i = l; i < 16 * K / 8; i += 32) {
    copy_async<16>(left + (i / 4 * kStride + i % 4 * 8), a + 8 * i);
    if (transposed) {
      copy_async<16>(right + (i / 4 * kStride + i % 4 * 8), b + 8 * i);
    } else {
      copy_async<16>(right + (i / 2 * kStrideB + i % 2 * 8), b + 8 * i);
    }
  }
  copy_async_commit();
  copy_async_wait<0>();
  sync_warp();
  float sums[2][4] = {};
  for (int k = 0; k < K; k += 16) {
    uint32_t fa[4];
    ldmatrix<4>(fa, left + (l % 16 * kStride + k + l / 16 * 8));
    uint32_t fb[2][2];
    if (transposed) {
      for (int n = 0; n < 2; ++n) ldmatrix<2>(fb[n], right + ((8 * n + l % 8) * kStride + k + l / 8 % 2 * 8));
    } else {
      uint32_t r[4];
      ldmatrix_trans<4>(r, right + ((k + l % 16) * kStrideB + l / 16 * 8));
      for (int i = 0; i < 4; ++i) fb[i / 2][i % 2] = r[i];
    }
    for (int n = 0; n < 2; ++n) mma_m16n8k16<T>(sums[n], fa, fb[n]);
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 16 + 8 * n + 2 * t + i % 2] = sums[n][i];
}

// the same without ldmatrix: the layout of registers as primitives.h writes it down
template <typename T>
KERNEL(32) fragments16(Global<const T> a, Global<const T> b, Global<float> c) {
  constexpr int K = 32;
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int n = 0; n < 16; n += 8) {
    float sums[4] = {};
    for (int k = 0; k < K; k += 16) {
      uint32_t fa[4], fb[2];
      for (int i = 0; i < 4; ++i) {
        const int at = (g + i % 2 * 8) * K + k + 2 * t + i / 2 * 8;
        fa[i] = pack<T>(to_float(static_cast<T>(a[at])), to_float(static_cast<T>(a[at + 1])));
      }
      for (int i = 0; i < 2; ++i) {
        const int at = (k + 2 * t + i * 8) * 16 + n + g;
        fb[i] = pack<T>(to_float(static_cast<T>(b[at])), to_float(static_cast<T>(b[at + 16])));
      }
      mma_m16n8k16<T>(sums, fa, fb);
    }
    for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 16 + n + 2 * t + i % 2] = sums[i];
  }
}

// TF32: a: [16][K], b: [K][16]
KERNEL(32) product8(Global<const float> a, Global<const float> b, Global<float> c) {
  constexpr int K = 32, kStride = K + 4;
  const int l = lane_index(), g = l / 4, t = l % 4;
  Shared<float> left = shared_array<float>(0, 16 * kStride);
  for (int i = l; i < 16 * K; i += 32) left[i / K * kStride + i % K] = bit_cast<float>(to_tf32(a[i]));
  sync_warp();
  float sums[2][4] = {};
  for (int k = 0; k < K; k += 8) {
    uint32_t fa[4];
    ldmatrix<4>(fa, left + (l % 16 * kStride + k + l / 16 * 4));
    for (int n = 0; n < 2; ++n) {
      const uint32_t fb[2] = {to_tf32(b[(k + t) * 16 + 8 * n + g]), to_tf32(b[(k + t + 4) * 16 + 8 * n + g])};
      mma_m16n8k8(sums[n], fa, fb);
    }
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 16 + 8 * n + 2 * t + i % 2] = sums[n][i];
}

KERNEL(64) shuffles(Global<const float> in, Global<float> out) {
  const int i = thread_index(), n = thread_count();
  const float x = in[i];
  out[i] = shuffle(x, 3);
  out[n + i] = shuffle_xor(x, 5);
  out[2 * n + i] = shuffle_down(x, 4);
  out[3 * n + i] = shuffle_up(x, 4);
  out[4 * n + i] = warp_sum(x);
  out[5 * n + i] = block_sum<2>(x, shared_array<float>(0, 2));
}

// every block writes its own shared memory and reads that of the next rank
KERNEL(32) neighbours(bool before, bool after, Global<float> out) {
  Shared<float> own = shared_array<float>(0, 32);
  own[lane_index()] = static_cast<float>(100 * block_index() + lane_index());
  if (before) sync_cluster();
  Shared<float> next = map_shared(own, (cluster_rank() + 1) % cluster_size());
  const float value = next[31 - lane_index()];
  out[32 * block_index() + lane_index()] = value;
  if (after) sync_cluster();
  own[lane_index()] = value;
}

template <typename T>
KERNEL(32) rounding(Global<const float> in, int64_t size, Global<T> out, Global<float> back) {
  for (int64_t i = lane_index(); i < size; i += 32) {
    const T x = from_float<T>(in[i]);
    out[i] = x;
    back[i] = to_float(x);
  }
}

}  // namespace
}  // namespace contnet_fast::cuda

using namespace contnet_fast::cuda;

template <typename T>
static void product(const void* a, const void* b, int form, float* c) {
  const auto *left = static_cast<const T*>(a), *right = static_cast<const T*>(b);
  if (form == 2) return launch({"fragments16", 1, 32}, fragments16<T>, left, right, c);
  launch({"product16", 1, 32, 4096}, product16<T>, left, right, form == 1, c);
}

extern "C" {

const char* check_product(int type, const void* a, const void* b, int form, float* c) {
  return guarded([&] {
    switch (static_cast<Scalar>(type)) {
      case Scalar::bf16: return product<bf16>(a, b, form, c);
      case Scalar::f16: return product<f16>(a, b, form, c);
      default:
        return launch({"product8", 1, 32, 16 * 36 * 4}, product8, static_cast<const float*>(a), static_cast<const float*>(b), c);
    }
  });
}

const char* check_shuffles(const float* in, float* out) {
  return guarded([&] { launch({"shuffles", 1, 64, 8}, shuffles, in, out); });
}

const char* check_neighbours(bool before, bool after, float* out) {
  return guarded([&] { launch({"neighbours", 8, 32, 128, 4}, neighbours, before, after, out); });
}

const char* check_rounding(int type, const float* in, int64_t size, void* out, float* back) {
  return guarded([&] {
    if (static_cast<Scalar>(type) == Scalar::bf16)
      return launch({"rounding", 1, 32}, rounding<bf16>, in, size, static_cast<bf16*>(out), back);
    launch({"rounding", 1, 32}, rounding<f16>, in, size, static_cast<f16*>(out), back);
  });
}

}  // extern "C"
