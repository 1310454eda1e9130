// Tiles in the domain of frequencies: transforms there and back, products, and weights. Part of the body that each
// conv_<isa>.cpp compiles for its instruction set.

namespace {

template <typename T, int L>
struct Domain : Vectors<T, L> {
  using Base = Vectors<T, L>;
  using Base::all, Base::clip, Base::load, Base::load_block, Base::store, Base::store_block, Base::transpose,
      Base::transpose_matrix;
  using typename Base::V;

  static constexpr int kWidest = 24;  // tiles side by side that are transformed together

  static int blocks(const Geometry& g) { return (g.tiles_x + kWidest - 1) / kWidest; }
  static int tiles(const Geometry& g) { return g.group * ((g.tiles_x + blocks(g) - 1) / blocks(g)); }
  // The frequencies of a tile and L channels lie together. There is room for one more: output frequency f takes the
  // place of input frequency f - 1, which is spent by then, and tiles do not fall into one set of the cache.
  static constexpr int kTile = 17 * L;
  static int64_t domain(const Geometry& g) { return int64_t(tiles(g)) * (g.padded / L) * kTile; }
  static int64_t row_length(const Geometry& g) { return int64_t(2 * g.tiles_x + 2) * g.padded; }

  // ---- transforms -----------------------------------------------------------------------------------------------

  struct Rows {  // four rows of pixels, from one vector of channels on
    const T *a, *b, *c, *d;
  };
  static inline __attribute__((always_inline)) void down(const Rows& rows, int64_t x, V* out) {
    const V d0 = load(rows.a + x), d1 = load(rows.b + x), d2 = load(rows.c + x), d3 = load(rows.d + x);
    out[0] = d0 - d2, out[1] = d1 + d2, out[2] = d2 - d1, out[3] = d1 - d3;
  }

  // f(channels from, row of tiles, place of its first tile among the domain) for every row of tiles of every vector
  template <typename F>
  static inline __attribute__((always_inline)) void over_tile_rows(const Geometry& g, int count, const F& f) {
    const int padded = g.padded, group = g.group;
    for (int c = 0; c < padded; c += L)
      for (int r = 0; r < group; ++r) f(c, r, (int64_t(c / L) * group + r) * count * kTile);
  }

  // B^T d B of 4x4 pixels: [channel vector][tile][1 ... 16][L]
  static __attribute__((noinline)) void transform_input(const Geometry& g, const T* const* row, int first, int count,
                                                        T* dst) {
    const int64_t padded = g.padded;
    over_tile_rows(g, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const int64_t start = 2 * first * padded + channel;
      const Rows rows{row[2 * r] + start, row[2 * r + 1] + start, row[2 * r + 2] + start, row[2 * r + 3] + start};
      T* out = dst + place + L;
      int64_t x = 0;
      V a[4], b[4], e[4], f[4];
      down(rows, x, a), down(rows, x + padded, b);
      for (int t = 0; t < count; ++t, out += kTile) {
        x += 2 * padded;
        down(rows, x, e), down(rows, x + padded, f);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          T* to = out + 4 * i * L;
          store(to, a[i] - e[i]);
          store(to + L, b[i] + e[i]);
          store(to + 2 * L, e[i] - b[i]);
          store(to + 3 * L, b[i] - f[i]);
          a[i] = e[i], b[i] = f[i];
        }
      }
    });
  }

  // A^T m A: the 2x2 pixels of each tile
  static __attribute__((noinline)) void transform_output(const Geometry& g, const T* src, int first, int count,
                                                         T* dst) {
    const int64_t length = Domain::row_length(g), padded = g.padded;
    over_tile_rows(g, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const T* in = src + place;
      T* out = dst + 2 * r * length + 2 * first * padded + channel;
      for (int t = 0; t < count; ++t, in += kTile, out += 2 * padded) {
        V p[4], q[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const V m0 = load(in + j * L), m1 = load(in + (4 + j) * L);
          const V m2 = load(in + (8 + j) * L), m3 = load(in + (12 + j) * L);
          const V sum = m1 + m2;
          p[j] = m0 + sum, q[j] = m1 - m2 - m3;
        }
        store(out, p[0] + p[1] + p[2]);
        store(out + padded, p[1] - p[2] - p[3]);
        store(out + length, q[0] + q[1] + q[2]);
        store(out + length + padded, q[1] - q[2] - q[3]);
      }
    });
  }

  // A y A^T of the unit's own 2x2 pixels: the transpose of transform_output
  static __attribute__((noinline)) void transform_gradient(const Geometry& g, const T* const* row, int first, int count,
                                                           T* dst) {
    const int64_t padded = g.padded;
    over_tile_rows(g, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const int64_t start = (2 * first + 1) * padded + channel;
      const T *top = row[2 * r + 1] + start, *bottom = row[2 * r + 2] + start;
      T* out = dst + place + L;
      for (int t = 0; t < count; ++t, top += 2 * padded, bottom += 2 * padded, out += kTile) {
        const V a = load(top), b = load(top + padded), e = load(bottom), f = load(bottom + padded);
        const V left[4] = {a, a + e, a - e, -e}, right[4] = {b, b + f, b - f, -f};
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          T* to = out + 4 * i * L;
          store(to, left[i]);
          store(to + L, left[i] + right[i]);
          store(to + 2 * L, left[i] - right[i]);
          store(to + 3 * L, -right[i]);
        }
      }
    });
  }

  // ---- products -------------------------------------------------------------------------------------------------

  // c[m][n] (+)= sum_k a[m][k] b[k][n], with N vectors n; rows of a lie A apart and one k is `a_step` on. Rows of c lie
  // A apart too where they are not added to.
  template <int M, int N, int A, bool kAdd>
  static __attribute__((noinline)) void product(const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step,
                                                int64_t b_next, int depth, int panel, T* c, int64_t c_rows,
                                                int64_t c_next) {
    const int64_t c_step = kAdd ? c_rows : A;
    V sum[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = kAdd ? load(c + m * c_step + n * c_next) : V{};
    // two short chains of sums round less than a long one
    const int second = kAdd || depth <= kChain ? 0 : depth / 2 / panel * panel;
    for (int done = 0; done < depth; done += panel, a += a_panel) {
      if (second && done == second) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            store(c + m * c_step + n * c_next, sum[m][n]);
            sum[m][n] = V{};
          }
      }
      const T* p = a;
      const int steps = depth - done < panel ? depth - done : panel;
      for (int k = 0; k < steps; ++k, p += a_step, b += b_step) {
        V line[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) line[n] = load(b + n * b_next);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const V x = all(p[m * A]);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[m][n] += x * line[n];
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* to = c + m * c_step + n * c_next;
        store(to, second ? load(to) + sum[m][n] : sum[m][n]);
      }
  }

  // The same for L rows and one vector of b, all of it held in registers: the loads are broadcasts and nothing else.
  template <int M>
  static __attribute__((noinline)) void product_held(const T* a, const T* b, T* c, int blocks) {
    V line[L];
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) line[k] = load(b + k * L);
    for (int i = 0; i < blocks; ++i, a += M * kTile, c += M * kTile) {
      V sum[M] = {};
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sum[m] += all(a[m * kTile + k]) * line[k];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) store(c + m * kTile, sum[m]);
    }
  }

  // Registers for M x N sums, N vectors of b and a broadcast.
  static constexpr bool kWide = sizeof(T) * L == 64;
  static constexpr int kLines = kWide ? 4 : 2;
  static constexpr int kHeld = 4;
  static constexpr int kChain = 128;
  template <int N>
  static constexpr int rows_at_once() {
    return kWide ? (N == 1 ? 16 : N == 2 ? 8 : 4) : (N == 1 ? 12 : 6);
  }

  template <int N, int A, bool kAdd>
  static void product_rows(int rows, const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step,
                           int64_t b_next, int depth, int panel, T* c, int64_t c_step, int64_t c_next) {
    constexpr int M = rows_at_once<N>();
    int m = 0;
    // so many rows at a time, as long as none are left over or at least `least`
    auto take = [&](auto rows_at_a_time, int least) {
      constexpr int kCount = decltype(rows_at_a_time)::value;
      while (rows - m == kCount || rows - m >= kCount + least) {
        product<kCount, N, A, kAdd>(a + m * A, a_step, a_panel, b, b_step, b_next, depth, panel, c + m * c_step, c_step,
                                    c_next);
        m += kCount;
      }
    };
    take(std::integral_constant<int, M>{}, M > 4 ? 4 : 0);
    if constexpr (M > 8) take(std::integral_constant<int, 8>{}, 0);
    if constexpr (M > 4) take(std::integral_constant<int, 4>{}, 0);
    take(std::integral_constant<int, 2>{}, 0);
    take(std::integral_constant<int, 1>{}, 0);
  }

  // frequencies of the output from those of the input, in place: m[t][co] = sum_ci v[t][ci] u[ci][co]
  static void multiply(const Geometry& g, T* tiles, const T* u, int count) {
    const int n = g.group * count;
    const int64_t panel = int64_t(n) * kTile;
    for (int f = 0; f < 16; ++f, tiles += L, u += int64_t(g.channels) * g.padded) {
      if (kWide && g.channels == L && n % kHeld == 0) {
        product_held<kHeld>(tiles + L, u, tiles, n / kHeld);
        continue;
      }
      int c = 0;
      auto lines = [&](auto width) {
        constexpr int N = decltype(width)::value;
        for (; c + N * L <= g.padded; c += N * L)
          product_rows<N, kTile, false>(n, tiles + L, 1, panel, u + c, g.padded, L, g.channels, L,
                                        tiles + c / L * panel, kTile, panel);
      };
      lines(std::integral_constant<int, kLines>{});
      if constexpr (kLines > 2) lines(std::integral_constant<int, 2>{});
      lines(std::integral_constant<int, 1>{});
    }
  }

  // du[ci][co] += sum_t v[t][ci] d[t][co]
  static void accumulate(const Geometry& g, const T* v, const T* d, int count, T* du) {
    const int n = g.group * count;
    const int64_t panel = int64_t(n) * kTile;
    for (int f = 1; f <= 16; ++f, du += int64_t(g.channels) * g.padded)
      for (int ci = 0; ci < g.channels; ci += L) {
        const int rows = g.channels - ci < L ? g.channels - ci : L;
        int c = 0;
        auto lines = [&](auto width) {
          constexpr int N = decltype(width)::value;
          for (; c + N * L <= g.padded; c += N * L)
            product_rows<N, 1, true>(rows, v + ci / L * panel + f * L, kTile, 0, d + c / L * panel + f * L, kTile,
                                     panel, n, n, du + int64_t(ci) * g.padded + c, g.padded, L);
        };
        lines(std::integral_constant<int, kLines>{});
        if constexpr (kLines > 2) lines(std::integral_constant<int, 2>{});
        lines(std::integral_constant<int, 1>{});
      }
  }

  // ---- weights --------------------------------------------------------------------------------------------------

  static inline __attribute__((always_inline)) void spread(V a, V b, V c, V* out) {
    const V half = all(T(0.5)), sum = (a + c) * half, middle = b * half;
    out[0] = a, out[1] = sum + middle, out[2] = sum - middle, out[3] = c;
  }
  static inline __attribute__((always_inline)) void gather(V a, V b, V c, V d, V* out) {
    const V half = all(T(0.5)), sum = (b + c) * half;
    out[0] = a + sum, out[1] = (b - c) * half, out[2] = sum + d;
  }

  // G w G^T, and for the data gradient its frequencies 0 and 3 swapped, in and out transposed: a kernel turned around
  static void pack(const Geometry& g, const T* weights, T* transformed, T* backward, T* taps) {
    const int64_t plane = int64_t(g.channels) * g.padded;
    const int width = 9 * g.channels;  // of a row of weights: all that one output channel reads
    for (int co = 0; co < g.padded; co += L) {
      const int rows = clip(g.channels - co);
      for (int i = 0; i < width; i += L) {  // taps [ci][tap][L output channels]
        V block[L];
        load_block(weights + int64_t(co) * width + i, width, rows, clip(width - i), block);
        transpose(block);
        store_block(taps + int64_t(i) * L, L, clip(width - i), L, block);
      }
      for (int ci = 0; ci < g.channels; ++ci) {
        const T* w = taps + int64_t(ci) * 9 * L;
        V across[3][4], column[4];
        for (int k = 0; k < 3; ++k)
          spread(load(w + 3 * k * L), load(w + (3 * k + 1) * L), load(w + (3 * k + 2) * L), across[k]);
        T* out = transformed + int64_t(ci) * g.padded + co;
        for (int j = 0; j < 4; ++j) {
          spread(across[0][j], across[1][j], across[2][j], column);
          for (int k = 0; k < 4; ++k) store(out + (4 * k + j) * plane, column[k]);
        }
      }
    }
    if (backward == nullptr) return;
    constexpr int kTurned[4] = {3, 1, 2, 0};
    for (int f = 0; f < 16; ++f) {
      const T* in = transformed + (4 * kTurned[f / 4] + kTurned[f % 4]) * plane;
      transpose_matrix(in, g.padded, g.channels, g.channels, backward + f * plane, g.padded, g.padded);
    }
  }

  // G^T du G: the gradient of weights
  static void unpack(const Geometry& g, const T* transformed, T* gradient, T* taps) {
    const int64_t plane = int64_t(g.channels) * g.padded;
    const int width = 9 * g.channels;
    for (int co = 0; co < g.channels; co += L) {
      for (int ci = 0; ci < g.channels; ++ci) {
        const T* in = transformed + int64_t(ci) * g.padded + co;
        V columns[4][3], row[3];
        for (int j = 0; j < 4; ++j)
          gather(load(in + j * plane), load(in + (4 + j) * plane), load(in + (8 + j) * plane),
                 load(in + (12 + j) * plane), columns[j]);
        T* out = taps + int64_t(ci) * 9 * L;
        for (int k = 0; k < 3; ++k) {
          gather(columns[0][k], columns[1][k], columns[2][k], columns[3][k], row);
          for (int j = 0; j < 3; ++j) store(out + (3 * k + j) * L, row[j]);
        }
      }
      transpose_matrix(taps, L, width, clip(g.channels - co), gradient + int64_t(co) * width, width, width);
    }
  }
};

}  // namespace
