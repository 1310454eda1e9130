// Stage combinations y + sum_j c_j k_j of all leaves of a state, with the error norm or what rounding lost in the same
// pass.
//
// Bound by memory: each operand is read once and the result written once, at most 16 bytes of each a thread, four rates
// at a time so that their loads are in flight together.

#include <algorithm>
#include <cmath>

#include "cuda/combine/combine_launch.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256;

// values a thread
constexpr int width(size_t state, size_t rate, bool rest) {
  const size_t widest = std::max(state, rate);
  return 16 / static_cast<int>(rest ? std::max(widest, sizeof(float)) : widest);
}
template <typename Y, typename K, bool REST>
constexpr int kWidth = width(sizeof(Y), sizeof(K), REST);

// In which compensated sums run, and what they lose is kept.
template <typename Y>
using WideSum = std::conditional_t<std::is_same_v<Y, float>, double, Sum<Y>>;
template <typename Y, bool REST>
using SumOf = std::conditional_t<REST, WideSum<Y>, Sum<Y>>;

template <typename Y, typename K, bool REST>
struct Leaves {
  using A = SumOf<Y, REST>;
  Global<const Y> y[kMostLeaves];
  Global<const K> k[kMostLeaves][kMostTerms];
  Global<Y> out[kMostLeaves];
  int64_t size[kMostLeaves], blocks[kMostLeaves];
  bool aligned[kMostLeaves];  // every pointer to whole vectors
  Global<const Sum<Y>> before[kMostLeaves];
  Global<Sum<Y>> after[kMostLeaves];
  A coefficient[kMostTerms], error[kMostTerms], rtol, atol;
  Global<double> partials;
  int leaves, terms;
  bool has_before;
};

// a + b - total, where total is a + b rounded
template <typename A>
DEVICE A lost(A a, A b, A total) {
  const A rounded = total - a;
  return (a - (total - rounded)) + (b - rounded);
}

// values [i, i + N), zeros from `size` on
template <int N, typename T>
DEVICE Vector<T, N> load_some(Global<const T> p, int64_t i, int64_t size, bool aligned) {
  if (aligned && i + N <= size) return load<N>(p, i);
  Vector<T, N> values{};
  UNROLL
  for (int n = 0; n < N; ++n)
    if (i + n < size) values[n] = p[i + n];
  return values;
}

template <int N, typename T>
DEVICE void store_some(Global<T> p, int64_t i, int64_t size, bool aligned, const Vector<T, N>& values) {
  if (aligned && i + N <= size) return store(p, i, values);
  UNROLL
  for (int n = 0; n < N; ++n)
    if (i + n < size) p[i + n] = values[n];
}

// With NORM also the error norm, with REST what rounding lost.
template <typename Y, typename K, bool NORM, bool REST>
KERNEL(kThreads)
combine_leaves(GRID_CONSTANT Leaves<Y, K, REST> p) {
  using A = SumOf<Y, REST>;
  constexpr int N = kWidth<Y, K, REST>;
  int64_t block = block_index();
  int leaf = 0;
  while (block >= p.blocks[leaf]) block -= p.blocks[leaf++];
  const int64_t size = p.size[leaf], first = (block * kThreads + thread_index()) * N;
  const bool aligned = p.aligned[leaf];

  A increment[N], error[N];
  UNROLL
  for (int n = 0; n < N; ++n) increment[n] = error[n] = A(0);
  for (int j = 0; j < p.terms; j += 4) {
    Vector<K, N> k[4];
    UNROLL
    for (int i = 0; i < 4; ++i)
      if (j + i < p.terms) k[i] = load_some<N>(p.k[leaf][j + i], first, size, aligned);
    UNROLL
    for (int i = 0; i < 4; ++i) {
      if (j + i >= p.terms) continue;
      const A c = p.coefficient[j + i], e = p.error[j + i];
      if (c != A(0)) {  // a term of weight zero adds nothing, not even NaN
        UNROLL
        for (int n = 0; n < N; ++n) increment[n] += c * widen<A>(k[i][n]);
      }
      if (NORM && e != A(0)) {
        UNROLL
        for (int n = 0; n < N; ++n) error[n] += e * widen<A>(k[i][n]);
      }
    }
  }

  const Vector<Y, N> start = load_some<N>(p.y[leaf], first, size, aligned);
  Vector<Y, N> end;
  if constexpr (REST) {
    Vector<Sum<Y>, N> before{}, after;
    if (p.has_before) before = load_some<N>(p.before[leaf], first, size, aligned);
    UNROLL
    for (int n = 0; n < N; ++n) {
      const A c = before[n], y = widen<A>(start[n]), more = increment[n] + c, total = y + more;
      end[n] = narrow<Y>(total);
      A rest;
      if constexpr (std::is_same_v<Y, double>) {
        rest = lost(y, more, total) + lost(increment[n], c, more);
      } else {
        rest = total - widen<A>(end[n]);
      }
      after[n] = static_cast<Sum<Y>>(rest - rest == A(0) ? rest : A(0));
    }
    store_some(p.after[leaf], first, size, aligned, after);
  } else {
    UNROLL
    for (int n = 0; n < N; ++n) end[n] = narrow<Y>(widen<A>(start[n]) + increment[n]);
  }
  store_some(p.out[leaf], first, size, aligned, end);

  if constexpr (NORM) {
    A squares = A(0);
    UNROLL
    for (int n = 0; n < N; ++n) {
      const A before = std::fabs(widen<A>(start[n])), after = std::fabs(widen<A>(end[n]));
      const A ratio =
          error[n] / (p.atol + p.rtol * (before > after ? before : after));  // a NaN state makes `after` NaN
      if (first + n < size) squares += ratio * ratio;
    }
    const A sum = block_sum<kThreads / 32>(squares, shared_array<A>(0, kThreads / 32));
    if (thread_index() == 0) p.partials[block_index()] = static_cast<double>(sum);
  }
}

template <typename T>
KERNEL(kThreads)
finish_norm(Global<const double> partials, int64_t count, double elements, Global<T> out) {
  double sum = 0.0;
  for (int64_t i = thread_index(); i < count; i += kThreads) sum += static_cast<double>(partials[i]);
  sum = block_sum<kThreads / 32>(sum, shared_array<double>(0, kThreads / 32));
  if (thread_index() == 0) out[0] = static_cast<T>(std::sqrt(sum / elements));
}

bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <typename Y, typename K, bool NORM, bool REST>
void launch_combine(const Combine& p) {
  using A = SumOf<Y, REST>;
  constexpr int N = kWidth<Y, K, REST>;
  constexpr int64_t values = kThreads * N;
  constexpr size_t wide = sizeof(Y) * N, rates = sizeof(K) * N, rests = sizeof(Sum<Y>) * N;
  Leaves<Y, K, REST> held{};
  for (int i = 0; i < p.leaves; ++i) {
    if (p.size[i] == 0) continue;
    const int l = held.leaves++;
    held.y[l] = static_cast<const Y*>(p.y[i]);
    held.out[l] = static_cast<Y*>(p.out[i]);
    held.before[l] = static_cast<const Sum<Y>*>(p.before[i]);
    held.after[l] = static_cast<Sum<Y>*>(p.after[i]);
    held.has_before = p.before[i] != nullptr;  // of all leaves or of none
    held.size[l] = p.size[i];
    held.blocks[l] = (p.size[i] + values - 1) / values;
    held.aligned[l] = is_aligned(p.y[i], wide) && is_aligned(p.out[i], wide) && is_aligned(p.before[i], rests) &&
                      is_aligned(p.after[i], rests);
    held.terms = 0;
    for (int j = 0; j < p.terms; ++j) {
      if (p.coefficient[j] == 0.0 && (p.partials == nullptr || p.error[j] == 0.0)) continue;
      held.k[l][held.terms] = static_cast<const K*>(p.k[i][j]);
      held.coefficient[held.terms] = static_cast<A>(p.coefficient[j]);
      held.error[held.terms++] = static_cast<A>(p.error[j]);
      held.aligned[l] = held.aligned[l] && is_aligned(p.k[i][j], rates);
    }
  }
  held.rtol = static_cast<A>(p.rtol);
  held.atol = static_cast<A>(p.atol);
  held.partials = p.partials;
  Grid grid{"rk_combine", combine_blocks(p), kThreads, 0, 1, p.stream};
  if (NORM) grid.shared = kThreads / 32 * static_cast<int64_t>(sizeof(A));
  launch(grid, combine_leaves<Y, K, NORM, REST>, held);
}

template <typename Y, typename K>
void combine(const Combine& p) {
  if (p.partials != nullptr) return launch_combine<Y, K, true, false>(p);
  if (p.leaves > 0 && p.after[0] != nullptr) return launch_combine<Y, K, false, true>(p);
  launch_combine<Y, K, false, false>(p);
}

}  // namespace

int64_t combine_blocks(const Combine& p) {
  const auto bytes = [](Scalar type) -> size_t { return type == Scalar::f64 ? 8 : type == Scalar::f32 ? 4 : 2; };
  const int64_t values = kThreads * width(bytes(p.state), bytes(p.rate), p.leaves > 0 && p.after[0] != nullptr);
  int64_t blocks = 0;
  for (int i = 0; i < p.leaves; ++i) blocks += (p.size[i] + values - 1) / values;
  return blocks;
}

void rk_combine(const Combine& p) {
  if (p.leaves > kMostLeaves || p.terms > kMostTerms) throw std::runtime_error("rk_combine: too many leaves or terms");
  if (p.state == Scalar::f32 && p.rate == Scalar::bf16) return combine<float, bf16>(p);
  if (p.state == Scalar::f32 && p.rate == Scalar::f16) return combine<float, f16>(p);
  if (p.state == Scalar::bf16 && p.rate == Scalar::f32) return combine<bf16, float>(p);
  if (p.state == Scalar::f16 && p.rate == Scalar::f32) return combine<f16, float>(p);
  if (p.state != p.rate) throw std::runtime_error("rk_combine: rates in this dtype beside this state are not served");
  switch (p.state) {
    case Scalar::f32: return combine<float, float>(p);
    case Scalar::f64: return combine<double, double>(p);
    case Scalar::bf16: return combine<bf16, bf16>(p);
    case Scalar::f16: return combine<f16, f16>(p);
  }
}

void error_norm(const double* partials, int64_t count, int64_t elements, void* out, Scalar type, void* stream) {
  const Grid grid{"error_norm", 1, kThreads, kThreads / 32 * static_cast<int64_t>(sizeof(double)), 1, stream};
  const auto of = static_cast<double>(elements);
  if (type == Scalar::f64) {
    launch(grid, finish_norm<double>, partials, count, of, static_cast<double*>(out));
  } else {
    launch(grid, finish_norm<float>, partials, count, of, static_cast<float*>(out));
  }
}

}  // namespace contnet_fast::cuda
