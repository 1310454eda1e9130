// Products in the tiles of AMX. Included between begin_amx.h and end.h, after immintrin.h.

namespace {

struct Tiles {
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (shape != kNone) _tile_release();
  }

  // Four tiles of sums and two of either operand, or four of sums, one of either and one of either with half the depth.
  enum Shape { kNone, kSquare, kColumn };
  Shape shape = kNone;

  void configure(Shape wanted) {
    if (shape == wanted) return;
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    if (wanted == kColumn) config.bytes[6] = 32, config.rows[7] = 8;
    _tile_loadconfig(&config);
    shape = wanted;
  }

  void multiply(const TileProduct& p) {
    if (p.columns == 1 || p.depth % kTileDepth) return columns(p);
    configure(kSquare);
    for (int n = 0; n < p.columns; n += 2)
      for (int m = 0; m < p.blocks; m += 2) {
        const bool one = m + 1 == p.blocks;
        if (n + 1 == p.columns)
          one ? square<1, 1>(p, m, n) : square<2, 1>(p, m, n);
        else
          one ? square<1, 2>(p, m, n) : square<2, 2>(p, m, n);
      }
  }

 private:
  void columns(const TileProduct& p) {
    configure(kColumn);
    for (int n = 0; n < p.columns; ++n)
      for (int m = 0; m < p.blocks; m += 4) {
        switch (p.blocks - m) {
          case 1: column<1>(p, m, n); break;
          case 2: column<2>(p, m, n); break;
          case 3: column<3>(p, m, n); break;
          default: column<4>(p, m, n);
        }
      }
  }

  template <int M, int N>
  static __attribute__((noinline)) void square(const TileProduct& p, int m, int n) {
    const int64_t c_bytes = 4 * p.c_row, a_bytes = 2 * p.a_row, b_bytes = 2 * p.b_pair;
    float *c0 = p.c + int64_t(m) * kTileRows * p.c_row + n * kTileColumns, *c1 = c0 + kTileRows * p.c_row;
    const Bfloat16 *a0 = p.a + p.block[m], *a1 = M > 1 ? p.a + p.block[m + 1] : nullptr;
    const Bfloat16* b0 = p.b + n * p.b_columns;
    if (p.add) {
      _tile_loadd(0, c0, c_bytes);
      if constexpr (N > 1) _tile_loadd(1, c0 + kTileColumns, c_bytes);
      if constexpr (M > 1) _tile_loadd(2, c1, c_bytes);
      if constexpr (M > 1 && N > 1) _tile_loadd(3, c1 + kTileColumns, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (N > 1) _tile_zero(1);
      if constexpr (M > 1) _tile_zero(2);
      if constexpr (M > 1 && N > 1) _tile_zero(3);
    }
    for (int t = 0; t < p.taps; ++t) {
      const Bfloat16* b = b0 + t * p.b_tap;
      for (int64_t k = t * p.a_tap, end = k + p.depth; k < end; k += kTileDepth, b += kTileDepth / 2 * p.b_pair) {
        _tile_loadd(6, b, b_bytes);
        _tile_loadd(4, a0 + k, a_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) {
          _tile_loadd(7, b + p.b_columns, b_bytes);
          _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (M > 1) {
          _tile_loadd(5, a1 + k, a_bytes);
          _tile_dpbf16ps(2, 5, 6);
          if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, c0, c_bytes);
    if constexpr (N > 1) _tile_stored(1, c0 + kTileColumns, c_bytes);
    if constexpr (M > 1) _tile_stored(2, c1, c_bytes);
    if constexpr (M > 1 && N > 1) _tile_stored(3, c1 + kTileColumns, c_bytes);
  }

  template <int M>
  static __attribute__((noinline)) void column(const TileProduct& p, int m, int n) {
    const int64_t c_bytes = 4 * p.c_row, a_bytes = 2 * p.a_row, b_bytes = 2 * p.b_pair, next = kTileRows * p.c_row;
    float* c = p.c + int64_t(m) * next + n * kTileColumns;
    const Bfloat16* a[M];
    for (int i = 0; i < M; ++i) a[i] = p.a + p.block[m + i];
    if (p.add) {
      _tile_loadd(0, c, c_bytes);
      if constexpr (M > 1) _tile_loadd(1, c + next, c_bytes);
      if constexpr (M > 2) _tile_loadd(2, c + 2 * next, c_bytes);
      if constexpr (M > 3) _tile_loadd(3, c + 3 * next, c_bytes);
    } else {
      _tile_zero(0);
      if constexpr (M > 1) _tile_zero(1);
      if constexpr (M > 2) _tile_zero(2);
      if constexpr (M > 3) _tile_zero(3);
    }
#define CONTNET_FAST_STEP(A, B)                    \
  _tile_loadd(B, b, b_bytes);                      \
  _tile_loadd(A, a[0] + k, a_bytes);               \
  _tile_dpbf16ps(0, A, B);                         \
  if constexpr (M > 1) {                           \
    _tile_loadd(A, a[M > 1 ? 1 : 0] + k, a_bytes); \
    _tile_dpbf16ps(1, A, B);                       \
  }                                                \
  if constexpr (M > 2) {                           \
    _tile_loadd(A, a[M > 2 ? 2 : 0] + k, a_bytes); \
    _tile_dpbf16ps(2, A, B);                       \
  }                                                \
  if constexpr (M > 3) {                           \
    _tile_loadd(A, a[M > 3 ? 3 : 0] + k, a_bytes); \
    _tile_dpbf16ps(3, A, B);                       \
  }
    for (int t = 0; t < p.taps; ++t) {
      const Bfloat16* b = p.b + n * p.b_columns + t * p.b_tap;
      int64_t k = t * p.a_tap;
      const int64_t end = k + p.depth / kTileDepth * kTileDepth;
      for (; k < end; k += kTileDepth, b += kTileDepth / 2 * p.b_pair) {
        CONTNET_FAST_STEP(4, 5)
      }
      if (p.depth % kTileDepth) {
        CONTNET_FAST_STEP(6, 7)
      }
    }
#undef CONTNET_FAST_STEP
    _tile_stored(0, c, c_bytes);
    if constexpr (M > 1) _tile_stored(1, c + next, c_bytes);
    if constexpr (M > 2) _tile_stored(2, c + 2 * next, c_bytes);
    if constexpr (M > 3) _tile_stored(3, c + 3 * next, c_bytes);
  }
};

}  // namespace
