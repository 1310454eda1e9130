// Tiles in the domain of frequencies: transforms there and back, products, and weights. Part of the body that each
// conv_<isa>.cpp compiles for its instruction set.

namespace {

template <typename T, int L, int M>
struct Domain : Line<T, L, M> {
  using Base = Line<T, L, M>;
  using Base::all, Base::clip, Base::load, Base::load_block, Base::store, Base::store_block, Base::transpose,
      Base::transpose_matrix;
  using typename Base::V;

  static constexpr int kSide = M + 2;  // pixels of a tile's input, and frequencies, in one dimension
  static constexpr int kFrequencies = kSide * kSide;
  static constexpr int kWidest = 48 / M;  // tiles side by side that are transformed together

  static int blocks(const Geometry& g) { return (g.tiles_x + kWidest - 1) / kWidest; }
  static int tiles(const Geometry& g) { return g.group * ((g.tiles_x + blocks(g) - 1) / blocks(g)); }
  // The frequencies of a tile and L channels lie together. There is room for one more: output frequency f takes the
  // place of input frequency f - 1, which is spent by then, and tiles do not fall into one set of the cache.
  static constexpr int kTile = (kFrequencies + 1) * L;
  static int64_t domain(const Geometry& g) { return int64_t(tiles(g)) * (g.padded / L) * kTile; }
  static int64_t row_length(const Geometry& g) { return int64_t(M * g.tiles_x + 2) * g.padded; }

  // ---- transforms -----------------------------------------------------------------------------------------------

  // A unit among those of several images, whose tiles lie behind one another in each vector of channels.
  struct Place {
    int image, of;
  };

  // f(channels from, row of tiles, place of its first tile among the domain) for every row of tiles of every vector
  template <typename F>
  static inline __attribute__((always_inline)) void over_tile_rows(const Geometry& g, Channels channels, Place p,
                                                                   int count, const F& f) {
    const int end = channels.to, group = g.group, all = p.of * group, first = p.image * group;
    for (int c = channels.from; c < end; c += L)
      for (int r = 0; r < group; ++r) f(c, r, (int64_t(c / L) * all + first + r) * count * kTile);
  }

  // A line of frequencies of `columns`, which have been transformed in the other dimension, to its place.
  template <int N, typename Transform>
  static inline __attribute__((always_inline)) void across(const V (*columns)[kSide], const Transform& transform,
                                                           T* out) {
#pragma GCC unroll 6
    for (int i = 0; i < kSide; ++i) {
      V line[N], to[kSide];
#pragma GCC unroll 6
      for (int j = 0; j < N; ++j) line[j] = columns[j][i];
      transform(line, to);
#pragma GCC unroll 6
      for (int j = 0; j < kSide; ++j) store(out + (kSide * i + j) * L, to[j]);
    }
  }

  // B^T d B of the pixels of a tile and those around it: [channel vector][tile][1 ... kFrequencies][L]
  static __attribute__((noinline)) void transform_input(const Geometry& g, Place p, const T* const* row, int first,
                                                        int count, T* dst) {
    const int64_t padded = g.padded;
    over_tile_rows(g, {0, g.padded}, p, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const T* from[kSide];
      for (int i = 0; i < kSide; ++i) from[i] = row[M * r + i] + M * first * padded + channel;
      T* out = dst + place + L;
      int64_t x = 0;
      auto down = [&](V* column) __attribute__((always_inline)) {
        V pixels[kSide];
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) pixels[i] = load(from[i] + x);
        Base::input(pixels, column);
        x += padded;
      };
      V columns[kSide][kSide];
      down(columns[M]), down(columns[M + 1]);
      for (int t = 0; t < count; ++t, out += kTile) {
#pragma GCC unroll 6
        for (int i = 0; i < kSide; ++i) columns[0][i] = columns[M][i], columns[1][i] = columns[M + 1][i];
#pragma GCC unroll 4
        for (int j = 2; j < kSide; ++j) down(columns[j]);
        across<kSide>(columns, [](const V* d, V* to) __attribute__((always_inline)) { Base::input(d, to); }, out);
      }
    });
  }

  // A^T m A: the pixels of each tile
  static __attribute__((noinline)) void transform_output(const Geometry& g, Channels channels, Place p, const T* src,
                                                         int first, int count, T* dst) {
    const int64_t length = Domain::row_length(g), padded = g.padded;
    over_tile_rows(g, channels, p, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const T* in = src + place;
      T* out = dst + M * r * length + M * first * padded + channel;
      for (int t = 0; t < count; ++t, in += kTile, out += M * padded) {
        V columns[kSide][M];
#pragma GCC unroll 6
        for (int j = 0; j < kSide; ++j) {
          V column[kSide];
#pragma GCC unroll 6
          for (int i = 0; i < kSide; ++i) column[i] = load(in + (kSide * i + j) * L);
          Base::template output<true>(column, columns[j]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) {
          V line[kSide], pixels[M];
#pragma GCC unroll 6
          for (int j = 0; j < kSide; ++j) line[j] = columns[j][i];
          Base::template output<false>(line, pixels);
#pragma GCC unroll 4
          for (int j = 0; j < M; ++j) store(out + i * length + j * padded, pixels[j]);
        }
      }
    });
  }

  // A y A^T of the unit's own pixels: the transpose of transform_output
  static __attribute__((noinline)) void transform_gradient(const Geometry& g, Place p, const T* const* row, int first,
                                                           int count, T* dst) {
    const int64_t padded = g.padded;
    over_tile_rows(g, {0, g.padded}, p, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const T* from[M];
      for (int i = 0; i < M; ++i) from[i] = row[M * r + 1 + i] + (M * first + 1) * padded + channel;
      T* out = dst + place + L;
      int64_t x = 0;
      for (int t = 0; t < count; ++t, out += kTile) {
        V columns[M][kSide];
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j, x += padded) {
          V pixels[M];
#pragma GCC unroll 4
          for (int i = 0; i < M; ++i) pixels[i] = load(from[i] + x);
          Base::gradient(pixels, columns[j]);
        }
        across<M>(columns, [](const V* y, V* to) __attribute__((always_inline)) { Base::gradient(y, to); }, out);
      }
    });
  }

  // ---- products -------------------------------------------------------------------------------------------------

  // c[m][n] (+)= sum_k a[m][k] b[k][n], with N vectors n; rows of a lie A apart and one k is `a_step` on. Rows of c lie
  // A apart too where they are not added to.
  template <int R, int N, int A, bool kAdd>
  static __attribute__((noinline)) void product(const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step,
                                                int64_t b_next, int depth, int panel, T* c, int64_t c_rows,
                                                int64_t c_next) {
    const int64_t c_step = kAdd ? c_rows : A;
    V sum[R][N];
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = kAdd ? load(c + m * c_step + n * c_next) : V{};
    // two short chains of sums round less than a long one
    const int second = kAdd || depth <= kChain ? 0 : depth / 2 / panel * panel;
    for (int done = 0; done < depth; done += panel, a += a_panel) {
      if (second && done == second) {
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m)
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
        for (int m = 0; m < R; ++m) {
          const V x = all(p[m * A]);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[m][n] += x * line[n];
        }
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < R; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        T* to = c + m * c_step + n * c_next;
        store(to, second ? load(to) + sum[m][n] : sum[m][n]);
      }
  }

  // The same for L rows and one vector of b, all of it held in registers: the loads are broadcasts and nothing else.
  template <int R>
  static __attribute__((noinline)) void product_held(const T* a, const T* b, T* c, int blocks) {
    V line[L];
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) line[k] = load(b + k * L);
    for (int i = 0; i < blocks; ++i, a += R * kTile, c += R * kTile) {
      V sum[R] = {};
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k)
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) sum[m] += all(a[m * kTile + k]) * line[k];
#pragma GCC unroll 16
      for (int m = 0; m < R; ++m) store(c + m * kTile, sum[m]);
    }
  }

  // Registers for R x N sums, N vectors of b and a broadcast.
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
    constexpr int R = rows_at_once<N>();
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
    take(std::integral_constant<int, R>{}, R > 4 ? 4 : 0);
    if constexpr (R > 8) take(std::integral_constant<int, 8>{}, 0);
    if constexpr (R > 4) take(std::integral_constant<int, 4>{}, 0);
    take(std::integral_constant<int, 2>{}, 0);
    take(std::integral_constant<int, 1>{}, 0);
  }

  // frequencies of the output of n tiles from those of the input, in place: m[t][co] = sum_ci v[t][ci] u[ci][co]
  static void multiply(const Geometry& g, Channels channels, T* tiles, const T* u, int n) {
    const int64_t panel = int64_t(n) * kTile;
    for (int f = 0; f < kFrequencies; ++f, tiles += L, u += int64_t(g.channels) * g.padded) {
      if (kWide && g.channels == L && n % kHeld == 0) {
        product_held<kHeld>(tiles + L, u, tiles, n / kHeld);
        continue;
      }
      int c = channels.from;
      auto lines = [&](auto width) {
        constexpr int N = decltype(width)::value;
        for (; c + N * L <= channels.to; c += N * L)
          product_rows<N, kTile, false>(n, tiles + L, 1, panel, u + c, g.padded, L, g.channels, L,
                                        tiles + c / L * panel, kTile, panel);
      };
      lines(std::integral_constant<int, kLines>{});
      if constexpr (kLines > 2) lines(std::integral_constant<int, 2>{});
      lines(std::integral_constant<int, 1>{});
    }
  }

  // du[ci][co] += sum_t v[t][ci] d[t][co]
  static void accumulate(const Geometry& g, const T* v, const T* d, int n, T* du) {
    const int64_t panel = int64_t(n) * kTile;
    for (int f = 1; f <= kFrequencies; ++f, du += int64_t(g.channels) * g.padded)
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

  // G w G^T of L filters, one for each plane of frequencies
  static inline __attribute__((always_inline)) void spread(const V* w, T* out, int64_t plane) {
    V lines[3][kSide], column[kSide];
    for (int k = 0; k < 3; ++k) Base::weights(w[3 * k], w[3 * k + 1], w[3 * k + 2], lines[k]);
    for (int j = 0; j < kSide; ++j) {
      Base::weights(lines[0][j], lines[1][j], lines[2][j], column);
      for (int k = 0; k < kSide; ++k) store(out + (kSide * k + j) * plane, column[k]);
    }
  }

  // G w G^T, and that of the data gradient, whose kernel is turned around, in and out transposed
  static void pack(const Geometry& g, Channels out, const T* weights, T* transformed, T* backward, T* taps) {
    const int64_t plane = int64_t(g.channels) * g.padded;
    const int width = 9 * g.channels;  // of a row of weights: all that one output channel reads
    V w[9];
    for (int co = out.from; co < out.to; co += L) {
      const int rows = clip(g.channels - co);
      for (int i = 0; i < width; i += L) {  // taps [ci][tap][L output channels]
        V block[L];
        load_block(weights + int64_t(co - out.from) * width + i, width, rows, clip(width - i), block);
        transpose(block);
        store_block(taps + int64_t(i) * L, L, clip(width - i), L, block);
      }
      for (int ci = 0; ci < g.channels; ++ci) {
        for (int k = 0; k < 9; ++k) w[k] = load(taps + (int64_t(ci) * 9 + k) * L);
        spread(w, transformed + int64_t(ci) * g.padded + co, plane);
      }
    }
    if (backward == nullptr) return;
    __builtin_memset(taps, 0, sizeof(T) * 9 * g.padded);
    for (int co = out.from; co < g.channels && co < out.to; ++co) {
      const T* from = weights + int64_t(co - out.from) * width;
      for (int ci = 0; ci < g.channels; ++ci)  // taps [tap][ci]
        for (int k = 0; k < 9; ++k) taps[int64_t(k) * g.padded + ci] = from[9 * ci + k];
      for (int ci = 0; ci < g.padded; ci += L) {
        for (int k = 0; k < 9; ++k) w[k] = load(taps + int64_t(8 - k) * g.padded + ci);
        spread(w, backward + int64_t(co) * g.padded + ci, plane);
      }
    }
  }

  // G^T du G: the gradient of weights
  static void unpack(const Geometry& g, Channels out, const T* transformed, T* gradient, T* taps) {
    const int64_t plane = int64_t(g.channels) * g.padded;
    const int width = 9 * g.channels;
    for (int co = out.from; co < g.channels && co < out.to; co += L) {
      for (int ci = 0; ci < g.channels; ++ci) {
        const T* in = transformed + int64_t(ci) * g.padded + co;
        V columns[kSide][3], line[kSide], row[3];
        for (int j = 0; j < kSide; ++j) {
          for (int i = 0; i < kSide; ++i) line[i] = load(in + (kSide * i + j) * plane);
          Base::weight_gradient(line, columns[j]);
        }
        T* tap = taps + int64_t(ci) * 9 * L;
        for (int k = 0; k < 3; ++k) {
          for (int j = 0; j < kSide; ++j) line[j] = columns[j][k];
          Base::weight_gradient(line, row);
          for (int j = 0; j < 3; ++j) store(tap + (3 * k + j) * L, row[j]);
        }
      }
      transpose_matrix(taps, L, width, clip(g.channels - co), gradient + int64_t(co) * width, width, width);
    }
  }
};

}  // namespace
