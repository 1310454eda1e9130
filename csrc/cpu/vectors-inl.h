// Vectors of L values: loads, stores, sums over pixels, transposition. Part of the bodies that are compiled for each
// instruction set; included there after every other header.

namespace {

template <typename T, int L>
struct Vectors {
  typedef T V __attribute__((vector_size(sizeof(T) * L)));
  typedef T Unaligned __attribute__((vector_size(sizeof(T) * L), aligned(sizeof(T)), may_alias));

  static inline __attribute__((always_inline)) V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline __attribute__((always_inline)) void store(T* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline __attribute__((always_inline)) V all(T x) { return x - V{}; }
  static inline __attribute__((always_inline)) V load_or(const T* p, T x) { return p ? load(p) : all(x); }

  // L values of float as bfloat16, each in the lower half of an integer: to nearest, ties to even, subnormal ones to zero
  typedef uint32_t Integers __attribute__((vector_size(4 * L)));
  typedef uint16_t Halves __attribute__((vector_size(2 * L)));
  static inline __attribute__((always_inline)) Integers to_bfloat16(V v) {
    const Integers bits = (Integers)v, high = bits >> 16, magnitude = bits & 0x7fffffffu;
    const Integers rounded = (bits + 0x7fffu + (high & 1u)) >> 16;
    return magnitude > 0x7f800000u ? (high | 0x40u) : magnitude < 0x00800000u ? (high & 0x8000u) : rounded;
  }
  template <typename To, typename From>
  static inline __attribute__((always_inline)) To converted(From v) {
    return __builtin_convertvector(v, To);
  }
  static inline __attribute__((always_inline)) void store(uint16_t* p, V v) {
#ifdef __AVX512BF16__
    if constexpr (L == 16) {
      const __m256bh halves = _mm512_cvtneps_pbh(v);
      __builtin_memcpy(p, &halves, sizeof halves);
      return;
    }
#endif
    const Halves halves = converted<Halves>(to_bfloat16(v));
    __builtin_memcpy(p, &halves, sizeof halves);
  }
  static inline __attribute__((always_inline)) Integers widen(const uint16_t* p) {
    Halves halves;
    __builtin_memcpy(&halves, p, sizeof halves);
    return converted<Integers>(halves);
  }
  static inline __attribute__((always_inline)) V load(const uint16_t* p) { return (V)(widen(p) << 16); }

  // sum of f(pixel) over pixels, in four interleaved sums that do not wait for one another
  template <typename F>
  static inline __attribute__((always_inline)) V over_pixels(int64_t pixels, const F& f) {
    V part[4] = {};
    int64_t i = 0;
    for (; i + 4 <= pixels; i += 4)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) part[k] += f(i + k);
    for (; i < pixels; ++i) part[0] += f(i);
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  // the sum of the values of a vector, by halves
  template <int S, std::size_t... I>
  static inline __attribute__((always_inline)) V folded(V v, std::index_sequence<I...>) {
#ifdef __clang__
    return v + __builtin_shufflevector(v, v, (I ^ S)...);
#else
    using Index = decltype(V{} < V{});
    constexpr Index other = {(I ^ S)...};
    return v + __builtin_shuffle(v, other);
#endif
  }
  template <int S = L / 2>
  static inline __attribute__((always_inline)) T total(V v) {
    if constexpr (S == 0)
      return v[0];
    else
      return total<S / 2>(folded<S>(v, std::make_index_sequence<L>{}));
  }

  static int clip(int n) { return n < L ? n : L; }

  // `columns` wide rows into vectors, zeros beyond what there is
  static inline void load_block(const T* p, int64_t step, int rows, int columns, V* out) {
    for (int i = 0; i < L; ++i) {
      out[i] = V{};
      if (i < rows && columns == L) out[i] = load(p + i * step);
      for (int j = 0; i < rows && columns < L && j < columns; ++j) out[i][j] = p[i * step + j];
    }
  }
  static inline void store_block(T* p, int64_t step, int rows, int columns, const V* in) {
    for (int i = 0; i < rows; ++i) {
      if (columns == L) store(p + i * step, in[i]);
      for (int j = 0; columns < L && j < columns; ++j) p[i * step + j] = in[i][j];
    }
  }

  template <int S, std::size_t... I>
  static inline __attribute__((always_inline)) void exchange(V& a, V& b, std::index_sequence<I...>) {
#ifdef __clang__
    const V first = __builtin_shufflevector(a, b, ((I & S) ? I - S + L : I)...);
    b = __builtin_shufflevector(a, b, ((I & S) ? I + L : I + S)...);
#else
    using Index = decltype(V{} < V{});  // integers of the same width
    constexpr Index low = {((I & S) ? I - S + L : I)...}, high = {((I & S) ? I + L : I + S)...};
    const V first = __builtin_shuffle(a, b, low);
    b = __builtin_shuffle(a, b, high);
#endif
    a = first;
  }
  template <int S>
  static inline __attribute__((always_inline)) void exchange_all(V* v) {
    if constexpr (S < L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i)
        if (!(i & S)) exchange<S>(v[i], v[i + S], std::make_index_sequence<L>{});
      exchange_all<2 * S>(v);
    }
  }
  static inline __attribute__((always_inline)) void transpose(V* v) { exchange_all<1>(v); }

  // out[j][i] = in[i][j], zeros from `rows` up to `width` columns of out
  static void transpose_matrix(const T* in, int64_t in_step, int rows, int columns, T* out, int64_t out_step,
                               int width) {
    for (int i = 0; i < width; i += L)
      for (int j = 0; j < columns; j += L) {
        V block[L];
        load_block(in + i * in_step + j, in_step, rows - i < 0 ? 0 : clip(rows - i), clip(columns - j), block);
        transpose(block);
        store_block(out + j * out_step + i, out_step, clip(columns - j), clip(width - i), block);
      }
  }
};

}  // namespace
