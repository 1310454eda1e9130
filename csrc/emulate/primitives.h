// The primitives as the emulator has them. Included by cuda/lib/primitives.h alone.
#pragma once

#include <cmath>
#include <tuple>

#include "emulate/floats.h"
#include "emulate/machine.h"
#include "runtime/limits.h"

#define KERNEL(THREADS) void
#define KERNEL_MIN_BLOCKS(THREADS, BLOCKS) void
#define GRID_CONSTANT const
#define DEVICE inline
#define UNROLL
#define UNROLL_BY(COUNT)

namespace contnet_fast::cuda {

using emulate::Place;

// ---- pointers that know their bounds

struct Index {  // remembers where it was made: at the use of []
  ptrdiff_t value;
  Place place;
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>
  Index(I value, Place place = Place::here()) : value(static_cast<ptrdiff_t>(value)), place(place) {}
};

template <typename T>
class Reference;

template <typename T>
class Pointer {
 public:
  using Value = std::remove_const_t<T>;

  Pointer() = default;
  Pointer(emulate::Memory* memory, ptrdiff_t offset, ptrdiff_t begin, ptrdiff_t end)
      : memory_(memory), offset_(offset), begin_(begin), end_(end) {}

  explicit operator bool() const { return memory_ != nullptr; }
  Reference<T> operator[](Index i) const { return Reference<T>(*this, i); }

  // `count` values from index i on, after every check; the bytes lie at the result
  std::byte* reading(ptrdiff_t i, size_t bytes, Place place) const {
    const ptrdiff_t at = checked(i, bytes, "reads", place);
    memory_->read(at, bytes, place);
    return memory_->data + at;
  }
  std::byte* writing(ptrdiff_t i, size_t bytes, Place place) const {
    const ptrdiff_t at = checked(i, bytes, "writes", place);
    memory_->write(at, bytes, place);
    return memory_->data + at;
  }
  ptrdiff_t checked(ptrdiff_t i, size_t bytes, const char* verb, Place place) const {
    if (memory_ == nullptr) emulate::fault(std::string(verb) + " through a null pointer", place);
    const ptrdiff_t at = offset_ + i * static_cast<ptrdiff_t>(sizeof(T));
    if (at < begin_ || at + static_cast<ptrdiff_t>(bytes) > end_)
      emulate::fault("out of bounds: " + std::string(verb) + " bytes " + std::to_string(at - begin_) + " to " +
                         std::to_string(at - begin_ + static_cast<ptrdiff_t>(bytes) - 1) + " of " +
                         std::to_string(end_ - begin_) + " in an array of " + memory_->name,
                     place);
    const auto address = reinterpret_cast<uintptr_t>(memory_->data + at);
    if (address % std::min<size_t>(bytes, 16) != 0)
      emulate::fault("misaligned: " + std::string(verb) + " " + std::to_string(bytes) + " bytes at byte " +
                         std::to_string(at) + " of " + memory_->name,
                     place);
    return at;
  }

  emulate::Memory* memory_ = nullptr;
  ptrdiff_t offset_ = 0, begin_ = 0, end_ = 0;  // bytes
};

template <typename T>
class Reference {
 public:
  using Value = std::remove_const_t<T>;

  Reference(Pointer<T> pointer, Index i) : pointer_(pointer), i_(i) {}
  operator Value() const {
    Value value;
    memcpy(&value, pointer_.reading(i_.value, sizeof(Value), i_.place), sizeof(Value));
    return value;
  }
  const Reference& operator=(Value value) const {
    static_assert(!std::is_const_v<T>, "a pointer to const");
    memcpy(pointer_.writing(i_.value, sizeof(Value), i_.place), &value, sizeof(Value));
    return *this;
  }
  const Reference& operator=(const Reference& other) const { return *this = static_cast<Value>(other); }
  const Reference& operator+=(Value value) const { return *this = static_cast<Value>(*this) + value; }
  const Reference& operator-=(Value value) const { return *this = static_cast<Value>(*this) - value; }
  const Reference& operator*=(Value value) const { return *this = static_cast<Value>(*this) * value; }

 private:
  Pointer<T> pointer_;
  Index i_;
};

#define POINTER_ARITHMETIC(NAME)                                                                          \
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>                               \
  friend NAME operator+(NAME p, I n) {                                                                    \
    p.offset_ += static_cast<ptrdiff_t>(n) * static_cast<ptrdiff_t>(sizeof(T));                           \
    return p;                                                                                             \
  }                                                                                                       \
  template <typename I, typename = std::enable_if_t<std::is_integral_v<I>>>                               \
  friend NAME operator-(NAME p, I n) {                                                                    \
    return p + -static_cast<ptrdiff_t>(n);                                                                \
  }                                                                                                       \
  template <typename I>                                                                                   \
  NAME& operator+=(I n) {                                                                                 \
    return *this = *this + n;                                                                             \
  }                                                                                                       \
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>>> \
  NAME(const NAME<U>& p) : Pointer<T>(p.memory_, p.offset_, p.begin_, p.end_) {}

template <typename T>
class Shared : public Pointer<T> {
 public:
  Shared() = default;
  using Pointer<T>::Pointer;
  POINTER_ARITHMETIC(Shared)
};

template <typename T>
class Global : public Pointer<T> {
 public:
  Global() = default;
  using Pointer<T>::Pointer;
  Global(T* raw) {
    if (raw == nullptr) return;
    emulate::Memory* memory = emulate::buffer_of(raw);
    const ptrdiff_t offset = reinterpret_cast<const std::byte*>(raw) - memory->data;
    static_cast<Pointer<T>&>(*this) = Pointer<T>(memory, offset, 0, static_cast<ptrdiff_t>(memory->size));
  }
  POINTER_ARITHMETIC(Global)
};
#undef POINTER_ARITHMETIC

template <typename U, typename T>
Shared<U> pointer_cast(Shared<T> p) {
  return {p.memory_, p.offset_, p.begin_, p.end_};
}
template <typename U, typename T>
Global<U> pointer_cast(Global<T> p) {
  return {p.memory_, p.offset_, p.begin_, p.end_};
}

template <typename T>
Shared<T> shared_array(int offset, int count, Place place = Place::here()) {
  emulate::Memory& memory = emulate::shared_memory(emulate::here().rank);
  const ptrdiff_t end = offset + static_cast<ptrdiff_t>(count) * static_cast<ptrdiff_t>(sizeof(T));
  if (offset < 0 || end > static_cast<ptrdiff_t>(memory.size))
    emulate::fault("an array up to byte " + std::to_string(end) + " of shared memory, which has " +
                       std::to_string(memory.size) + ": out of bounds",
                   place);
  return {&memory, offset, offset, end};
}

template <int N, typename T, typename I>
Vector<std::remove_const_t<T>, N> load(const Pointer<T>& p, I i, Place place = Place::here()) {
  Vector<std::remove_const_t<T>, N> value;
  memcpy(&value, p.reading(static_cast<ptrdiff_t>(i), sizeof(value), place), sizeof(value));
  return value;
}

template <int N, typename T, typename I>
void store(const Pointer<T>& p, I i, const Vector<T, N>& value, Place place = Place::here()) {
  memcpy(p.writing(static_cast<ptrdiff_t>(i), sizeof(value), place), &value, sizeof(value));
}

// ---- where a thread is, and barriers

inline int afresh(int x) { return x; }
inline int thread_index() { return emulate::here().thread; }
inline int thread_count() { return emulate::here().threads; }
inline int lane_index() { return emulate::here().thread % 32; }
inline int warp_index() { return emulate::here().thread / 32; }
inline int block_index() { return emulate::here().block; }
inline int block_count() { return emulate::here().blocks; }
inline int block_row() { return emulate::here().row; }
inline int cluster_rank() { return emulate::here().rank; }
inline int cluster_size() { return emulate::here().cluster; }

inline void sync_threads(Place place = Place::here()) { emulate::sync_threads(place); }
inline void sync_warp(Place place = Place::here()) { emulate::sync_warp(place); }
inline void sync_cluster(Place place = Place::here()) { emulate::sync_cluster(place); }

template <typename T>
Shared<T> map_shared(Shared<T> p, int rank, Place place = Place::here()) {
  if (rank < 0 || rank >= cluster_size()) emulate::fault("no rank " + std::to_string(rank) + " in its cluster", place);
  return {&emulate::shared_memory(rank), p.offset_, p.begin_, p.end_};
}

// ---- asynchronous copies

template <int BYTES, typename T, typename S>
void copy_async_or_zero(const Shared<T>& to, const Global<S>& from, bool inside, Place place = Place::here()) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  const ptrdiff_t source = inside ? from.checked(0, BYTES, "copies", place) : 0;
  emulate::copy_async(*to.memory_, to.checked(0, BYTES, "copies to", place), inside ? from.memory_ : nullptr, source,
                      BYTES, place);
}
template <int BYTES, typename T, typename S>
void copy_async(const Shared<T>& to, const Global<S>& from, Place place = Place::here()) {
  copy_async_or_zero<BYTES>(to, from, true, place);
}
inline void copy_async_commit() { emulate::copy_async_commit(); }
template <int PENDING>
void copy_async_wait(Place place = Place::here()) {
  emulate::copy_async_wait(PENDING, place);
}

// ---- warps

template <typename T>
T shuffle(T value, int lane, Place place = Place::here()) {
  struct Lane {
    T value;
    int from;
    T got;
  } mine{value, lane & 31, value};
  emulate::meet(
      "a shuffle", &mine,
      [](void* const* all) {
        for (int i = 0; i < 32; ++i) {
          auto* one = static_cast<Lane*>(all[i]);
          one->got = static_cast<Lane*>(all[one->from])->value;
        }
      },
      place);
  return mine.got;
}
template <typename T>
T shuffle_xor(T value, int mask, Place place = Place::here()) {
  return shuffle(value, lane_index() ^ mask, place);
}
template <typename T>
T shuffle_down(T value, int distance, Place place = Place::here()) {
  return shuffle(value, lane_index() + distance > 31 ? lane_index() : lane_index() + distance, place);
}
template <typename T>
T shuffle_up(T value, int distance, Place place = Place::here()) {
  return shuffle(value, lane_index() < distance ? lane_index() : lane_index() - distance, place);
}

struct MatrixLane {
  const std::byte* row;
  uint32_t* r;
};

template <int N, bool TRANS>
void ldmatrix_act(void* const* all) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* one = static_cast<MatrixLane*>(all[lane]);
    for (int i = 0; i < N; ++i) {
      std::byte value[4];
      for (int half = 0; half < 2; ++half) {
        const int row = TRANS ? lane % 4 * 2 + half : lane / 4, column = TRANS ? lane / 4 : lane % 4 * 2 + half;
        memcpy(value + 2 * half, static_cast<MatrixLane*>(all[8 * i + row])->row + 2 * column, 2);
      }
      memcpy(&one->r[i], value, 4);
    }
  }
}

template <int N, bool TRANS, typename T>
void ldmatrix_emulated(uint32_t (&r)[N], const Shared<T>& row, Place place) {
  static_assert(N == 1 || N == 2 || N == 4, "ldmatrix loads 1, 2 or 4 matrices");
  MatrixLane mine{lane_index() < 8 * N ? row.reading(0, 16, place) : nullptr, r};
  emulate::meet(TRANS ? "ldmatrix_trans" : "ldmatrix", &mine, ldmatrix_act<N, TRANS>, place);
}
template <int N, typename T>
void ldmatrix(uint32_t (&r)[N], const Shared<T>& row, Place place = Place::here()) {
  ldmatrix_emulated<N, false>(r, row, place);
}
template <int N, typename T>
void ldmatrix_trans(uint32_t (&r)[N], const Shared<T>& row, Place place = Place::here()) {
  static_assert(sizeof(T) == 2, "ldmatrix transposes 16-bit values");
  ldmatrix_emulated<N, true>(r, row, place);
}

struct ProductLane {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

template <int K>
void multiply(void* const* all, const float (&a)[16][K], const float (&b)[K][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* one = static_cast<ProductLane*>(all[lane]);
    for (int i = 0; i < 4; ++i) {
      const int m = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
      float sum = one->c[i];
      for (int k = 0; k < K; ++k) sum += a[m][k] * b[k][n];
      one->c[i] = sum;
    }
  }
}

template <typename T>
float half_of(uint32_t r, int half) {
  const auto bits = static_cast<uint16_t>(r >> 16 * half);
  return std::is_same_v<T, bf16> ? float_of_bfloat(bits) : float_of_half(bits);
}

template <typename T>
void mma_m16n8k16_act(void* const* all) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* one = static_cast<const ProductLane*>(all[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = half_of<T>(one->a[i], half);
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][g] = half_of<T>(one->b[i], half);
    }
  }
  multiply<16>(all, a, b);
}

template <typename T>
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::here()) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>, "operands are bf16 or f16");
  ProductLane mine{c, a, b};
  emulate::meet("mma_m16n8k16", &mine, mma_m16n8k16_act<T>, place);
}

inline void mma_m16n8k8_act(void* const* all) {
  const auto tf32 = [](uint32_t bits) { return bit_cast<float>(bits & 0xffffe000u); };
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* one = static_cast<const ProductLane*>(all[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = tf32(one->a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tf32(one->b[i]);
  }
  multiply<8>(all, a, b);
}

inline void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::here()) {
  ProductLane mine{c, a, b};
  emulate::meet("mma_m16n8k8", &mine, mma_m16n8k8_act, place);
}

// ---- conversions

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return float_of_bfloat(x.bits); }
inline float to_float(f16 x) { return float_of_half(x.bits); }

template <typename T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    return {bfloat_of_float(x)};
  } else {
    static_assert(std::is_same_v<T, f16>, "float, bf16 or f16");
    return {half_of_float(x)};
  }
}

template <typename T>
uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

inline uint32_t to_tf32(float x) {  // to nearest, ties away from zero
  const uint32_t bits = bit_cast<uint32_t>(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// ---- launch

inline DeviceFacts device_facts(void (*)()) {
  return {2, limits::MOST_CLUSTER, 1024 * limits::most_shared()};
}  // as on an H100, but for its multiprocessors

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.blocks == 0 || grid.rows == 0) return;
  const std::tuple<std::decay_t<Parameters>...> held(std::forward<Arguments>(arguments)...);
  ++launch_count();
  emulate::run(grid, [&] { std::apply(kernel, held); });
}

}  // namespace contnet_fast::cuda
