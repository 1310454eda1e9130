// Products by vdpbf16ps. Included between begin_avx512_bf16.h and end.h, after immintrin.h.

namespace {

struct Tiles {
  void multiply(const TileProduct& p) {
    int n = 0;
    for (; n + 2 <= p.columns; n += 2)
      for (int m = 0; m < p.blocks; ++m) rows<8, 2>(p, m, n);
    for (int m = 0; n < p.columns && m < p.blocks; ++m) rows<16, 1>(p, m, n);
  }

 private:
  // one block of 16 rows, M of them at a time, N times 16 columns
  template <int M, int N>
  static __attribute__((noinline)) void rows(const TileProduct& p, int m, int n) {
    for (int first = 0; first < kTileRows; first += M) {
      const Bfloat16* a = p.a + p.block[m] + first * p.a_row;
      float* c = p.c + (int64_t(m) * kTileRows + first) * p.c_row + n * kTileColumns;
      __m512 sum[M][N];
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j)
          sum[i][j] = p.add ? _mm512_loadu_ps(c + i * p.c_row + j * kTileColumns) : _mm512_setzero_ps();
      for (int t = 0; t < p.taps; ++t) {
        const Bfloat16 *row = a + t * p.a_tap, *b = p.b + n * p.b_columns + t * p.b_tap;
        for (int k = 0; k < p.depth; k += 2, row += 2, b += p.b_pair) {
          __m512bh line[N];
#pragma GCC unroll 2
          for (int j = 0; j < N; ++j) line[j] = (__m512bh)_mm512_loadu_si512(b + j * p.b_columns);
#pragma GCC unroll 16
          for (int i = 0; i < M; ++i) {
            int pair;
            __builtin_memcpy(&pair, row + i * p.a_row, sizeof pair);
            const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], x, line[j]);
          }
        }
      }
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) _mm512_storeu_ps(c + i * p.c_row + j * kTileColumns, sum[i][j]);
    }
  }
};

}  // namespace
