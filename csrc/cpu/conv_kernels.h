// The one body of the convolution kernels. Each conv_<isa>.cpp includes it inside its own namespace, after choosing the
// instruction set. Vectors are the compiler's own, of L channels; included there after every other header.

namespace {

template <typename T, int L>
struct Conv {
  typedef T V __attribute__((vector_size(sizeof(T) * L)));
  typedef T Unaligned __attribute__((vector_size(sizeof(T) * L), aligned(sizeof(T)), may_alias));

  static inline __attribute__((always_inline)) V load(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline __attribute__((always_inline)) void store(T* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline __attribute__((always_inline)) V all(T x) { return x - V{}; }
  static inline __attribute__((always_inline)) V load_or(const T* p, T x) { return p ? load(p) : all(x); }

  static constexpr int kWidest = 24;  // tiles side by side that are transformed together

  static int blocks(const Geometry& g) { return (g.tiles_x + kWidest - 1) / kWidest; }
  static int tiles(const Geometry& g) { return g.group * ((g.tiles_x + blocks(g) - 1) / blocks(g)); }
  // The frequencies of a tile and L channels lie together. There is room for one more: output frequency f takes the
  // place of input frequency f - 1, which is spent by then, and tiles do not fall into one set of the cache.
  static constexpr int kTile = 17 * L;
  static int64_t domain(const Geometry& g) { return int64_t(tiles(g)) * (g.padded / L) * kTile; }
  static int64_t row(const Geometry& g) { return int64_t(2 * g.tiles_x + 2) * g.padded; }

  // Scratch of a unit: a ring of padded rows for each operand, tiles in the domain of frequencies, result rows.
  struct Scratch {
    T* rows[2];
    T* tiles;
    T* gradient;
    T* result;
  };
  static Scratch divide(const Geometry& g, T* p) {
    const int64_t ring = (2 * g.group + 2) * row(g);
    return {{p, p + ring}, p + 2 * ring, p + 2 * ring + domain(g), p + 2 * ring + 2 * domain(g)};
  }
  static int64_t scratch(const Geometry& g) {
    return 2 * (2 * g.group + 2) * row(g) + 2 * domain(g) + 2 * g.group * row(g);
  }

  // ---- transposition --------------------------------------------------------------------------------------------

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
  static void transpose_matrix(const T* in, int64_t in_step, int rows, int columns, T* out, int64_t out_step, int width) {
    for (int i = 0; i < width; i += L)
      for (int j = 0; j < columns; j += L) {
        V block[L];
        load_block(in + i * in_step + j, in_step, rows - i < 0 ? 0 : clip(rows - i), clip(columns - j), block);
        transpose(block);
        store_block(out + j * out_step + i, out_step, clip(columns - j), clip(width - i), block);
      }
  }

  // ---- operands -------------------------------------------------------------------------------------------------

  template <bool kOther, bool kMask>
  static void load_pixels(const Operand<T>& in, int64_t offset, int width, int padded, T* dst) {
    const T floor = in.relu ? T(0) : -std::numeric_limits<T>::infinity();
    const V low = all(floor);
    for (int c = 0; c < padded; c += L) {
      const V scale = load_or(in.scale ? in.scale + c : nullptr, T(1));
      const V shift = load_or(in.shift ? in.shift + c : nullptr, T(0));
      const V other_scale = load_or(in.other_scale ? in.other_scale + c : nullptr, T(0));
      const T* map = in.map + offset + c;
      const T* other = in.other + (kOther ? offset + c : 0);
      T* out = dst + c;
      for (int x = 0; x < width; ++x, map += padded, other += kOther ? padded : 0, out += padded) {
        V v = load(map) * scale + shift;
        if (kOther) v += load(other) * other_scale;
        v = v < low ? low : v;
        if (kMask) v = load(other) > V{} ? v : V{};
        store(out, v);
      }
    }
  }

  static void load_row(const Operand<T>& in, int64_t offset, int width, int padded, T* dst) {
    if (in.mask_by_other) return load_pixels<true, true>(in, offset, width, padded, dst);
    if (in.other) return load_pixels<true, false>(in, offset, width, padded, dst);
    load_pixels<false, false>(in, offset, width, padded, dst);
  }

  // Row y of the image, or zeros outside it, between one pixel of zeros on either side.
  static __attribute__((noinline)) void load_padded(const Geometry& g, const Operand<T>& in, int y, T* dst) {
    const int64_t length = int64_t(g.width) * g.padded;
    if (y < 0 || y >= g.height) {
      __builtin_memset(dst + g.padded, 0, sizeof(T) * length);
    } else {
      load_row(in, y * length, g.width, g.padded, dst + g.padded);
    }
  }

  // The rows that a unit reads: its own, one above and one below. Two of the unit before are at hand.
  struct Ring {
    T* row[2 * kMostRows + 2];
    void start(const Geometry& g, T* memory) {
      const int64_t length = Conv::row(g);
      for (int i = 0; i < 2 * g.group + 2; ++i) row[i] = memory + i * length;
      __builtin_memset(memory, 0, sizeof(T) * length * (2 * g.group + 2));
    }
    void fill(const Geometry& g, const Operand<T>& in, int unit, bool follows) {
      const int n = 2 * g.group + 2, top = 2 * g.group * unit - 1;
      if (follows) {
        T* above[2] = {row[n - 2], row[n - 1]};
        for (int i = n - 1; i >= 2; --i) row[i] = row[i - 2];
        row[0] = above[0], row[1] = above[1];
      }
      for (int i = follows ? 2 : 0; i < n; ++i) load_padded(g, in, top + i, row[i]);
    }
  };

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
  static __attribute__((noinline)) void transform_input(const Geometry& g, const Ring& ring, int first, int count,
                                                        T* dst) {
    const int64_t padded = g.padded;
    const T* const* row = ring.row;
    over_tile_rows(g, count, [=](int channel, int r, int64_t place) __attribute__((always_inline)) {
      const int64_t start = 2 * first * padded + channel;
      const Rows rows{row[2 * r] + start, row[2 * r + 1] + start, row[2 * r + 2] + start,
                      row[2 * r + 3] + start};
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
  static __attribute__((noinline)) void transform_output(const Geometry& g, const T* src, int first, int count, T* dst) {
    const int64_t length = Conv::row(g), padded = g.padded;
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
  static __attribute__((noinline)) void transform_gradient(const Geometry& g, const Ring& ring, int first, int count,
                                                           T* dst) {
    const int64_t padded = g.padded;
    const T* const* row = ring.row;
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
  static __attribute__((noinline)) void product(const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step, int64_t b_next,
                      int depth, int panel, T* c, int64_t c_rows, int64_t c_next) {
    const int64_t c_step = kAdd ? c_rows : A;
    V sum[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = kAdd ? load(c + m * c_step + n * c_next) : V{};
    for (int done = 0; done < depth; done += panel, a += a_panel) {
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
      for (int n = 0; n < N; ++n) store(c + m * c_step + n * c_next, sum[m][n]);
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
  template <int N>
  static constexpr int rows_at_once() {
    return kWide ? (N == 1 ? 16 : N == 2 ? 8 : 4) : (N == 1 ? 12 : 6);
  }

  template <int N, int A, bool kAdd>
  static void product_rows(int rows, const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step,
                           int64_t b_next, int depth, int panel, T* c, int64_t c_step, int64_t c_next) {
    constexpr int M = rows_at_once<N>();
    int m = 0;
    auto some = [&](auto count, int least) {  // and then nothing, or at least so many rows left
      constexpr int kCount = decltype(count)::value;
      for (int left = rows - m; left >= kCount && (left == kCount || left - kCount >= least); left -= kCount, m += kCount)
        product<kCount, N, A, kAdd>(a + m * A, a_step, a_panel, b, b_step, b_next, depth, panel, c + m * c_step,
                                    c_step, c_next);
    };
    some(std::integral_constant<int, M>{}, M > 4 ? 4 : 0);
    if constexpr (M > 8) some(std::integral_constant<int, 8>{}, 0);
    if constexpr (M > 4) some(std::integral_constant<int, 4>{}, 0);
    some(std::integral_constant<int, 2>{}, 0);
    some(std::integral_constant<int, 1>{}, 0);
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
            product_rows<N, 1, true>(rows, v + ci / L * panel + f * L, kTile, 0, d + c / L * panel + f * L, kTile, panel,
                                     n, n, du + int64_t(ci) * g.padded + c, g.padded, L);
        };
        lines(std::integral_constant<int, kLines>{});
        if constexpr (kLines > 2) lines(std::integral_constant<int, 2>{});
        lines(std::integral_constant<int, 1>{});
      }
  }

  // ---- results --------------------------------------------------------------------------------------------------

  // The value of a row of results into its first destination, with one term or none, and where more follow also back
  // into the row.
  template <bool kMask, bool kTerm>
  static void finish_pixels(const Result<T>& r, int64_t offset, int width, int padded, bool more, T* row) {
    const T floor = r.relu ? T(0) : -std::numeric_limits<T>::infinity();
    const V low = all(floor);
    const Destination<T>& d = r.destination[0];
    const V own = all(d.own), factor = all(kTerm ? d.term[0].coefficient : T(0));
    for (int c = 0; c < padded; c += L) {
      const V bias = load_or(r.bias ? r.bias + c : nullptr, T(0));
      const V scale = load_or(r.scale ? r.scale + c : nullptr, T(1));
      const V shift = load_or(r.shift ? r.shift + c : nullptr, T(0));
      const V mask_scale = load_or(r.mask_scale ? r.mask_scale + c : nullptr, T(1));
      const V mask_shift = load_or(r.mask_shift ? r.mask_shift + c : nullptr, T(0));
      const T* mask = r.mask + (kMask ? offset + c : 0);
      const T* term = kTerm ? d.term[0].map + offset + c : nullptr;
      T *p = row + c, *out = d.out + offset + c;
      for (int64_t i = 0; i < int64_t(width) * padded; i += padded) {
        V v = load(p + i) + bias;
        v = v < low ? low : v;
        v = v * scale + shift;
        if (kMask) v = load(mask + i) * mask_scale + mask_shift > V{} ? v : V{};
        if (more) store(p + i, v);
        v *= own;
        if (kTerm) v += load(term + i) * factor;
        store(out + i, v);
      }
    }
  }

  // out = own * value + sum of terms, over a contiguous stretch
  template <int kCount>
  static void combine_terms(const Destination<T>& d, const T* value, int64_t offset, int64_t length, int first,
                            bool again) {
    const T* map[kCount > 0 ? kCount : 1];
    V factor[kCount > 0 ? kCount : 1];
    for (int j = 0; j < kCount; ++j) {
      map[j] = d.term[first + j].map + offset;
      factor[j] = all(d.term[first + j].coefficient);
    }
    const V own = all(again ? T(1) : d.own);
    T* out = d.out + offset;
    const T* from = again ? out : value;
    for (int64_t i = 0; i < length; i += L) {
      V v = from ? load(from + i) * own : V{};
      for (int j = 0; j < kCount; ++j) v += load(map[j] + i) * factor[j];
      store(out + i, v);
    }
  }

  static void combine_stretch(const Destination<T>& d, const T* value, int64_t offset, int64_t length) {
    int first = 0;
    do {
      const int left = d.terms - first;
      const bool again = first > 0;
      switch (left < 4 ? left : 4) {
        case 0: combine_terms<0>(d, value, offset, length, first, again); break;
        case 1: combine_terms<1>(d, value, offset, length, first, again); break;
        case 2: combine_terms<2>(d, value, offset, length, first, again); break;
        case 3: combine_terms<3>(d, value, offset, length, first, again); break;
        default: combine_terms<4>(d, value, offset, length, first, again);
      }
      first += 4;
    } while (first < d.terms);
  }

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

  static __attribute__((noinline)) void sum(const Geometry& g, const T* map, const Result<T>& r, int unit) {
    const int64_t pixels = int64_t(g.rows(unit)) * g.width, start = int64_t(2) * g.group * unit * g.width * g.padded;
    T* partial = r.partial + int64_t(unit) * 2 * g.padded;
    for (int c = 0; c < g.padded; c += L) {
      const T* p = map + start + c;
      V total = over_pixels(pixels, [&](int64_t i) { return load(p + i * g.padded); }), second;
      if (r.sums == Sums::moments) {
        total *= all(T(1) / static_cast<T>(pixels));
        second = over_pixels(pixels, [&](int64_t i) {
          const V apart = load(p + i * g.padded) - total;
          return apart * apart;
        });
      } else {
        const T* with = r.with + start + c;
        const V center = load_or(r.center ? r.center + c : nullptr, T(0));
        second = over_pixels(pixels, [&](int64_t i) {
          return load(p + i * g.padded) * (load(with + i * g.padded) - center);
        });
      }
      store(partial + c, total);
      store(partial + g.padded + c, second);
    }
  }

  static __attribute__((noinline)) void finish(const Geometry& g, const Result<T>& r, int unit, T* result) {
    const int64_t length = int64_t(g.width) * g.padded;
    const Destination<T>& first = r.destination[0];
    const bool simple = first.terms <= 1, more = r.destinations > 1 || !simple;
    for (int i = 0; i < g.rows(unit); ++i) {
      T* row = result + i * Conv::row(g);
      const int64_t offset = (int64_t(2) * g.group * unit + i) * length;
      const bool term = first.terms == 1;
      if (r.mask && term)
        finish_pixels<true, true>(r, offset, g.width, g.padded, more, row);
      else if (r.mask)
        finish_pixels<true, false>(r, offset, g.width, g.padded, more, row);
      else if (term)
        finish_pixels<false, true>(r, offset, g.width, g.padded, more, row);
      else
        finish_pixels<false, false>(r, offset, g.width, g.padded, more, row);
      for (int d = simple ? 1 : 0; d < r.destinations; ++d) combine_stretch(r.destination[d], row, offset, length);
    }
    if (r.sums != Sums::none) sum(g, r.destination[0].out, r, unit);
  }

  static __attribute__((noinline)) void add_bias_gradient(const Geometry& g, const Ring& ring, int unit, T* gradient) {
    for (int c = 0; c < g.padded; c += L) {
      V total = load(gradient + c);
      for (int i = 0; i < g.rows(unit); ++i) {
        const T* p = ring.row[i + 1] + g.padded + c;
        total += over_pixels(g.width, [&](int64_t x) { return load(p + x * g.padded); });
      }
      store(gradient + c, total);
    }
  }

  static void prefetch(const T* map, int64_t offset, int64_t length) {
    constexpr int64_t kLine = 64 / sizeof(T);
    for (int64_t i = 0; map && i < length; i += kLine) __builtin_prefetch(map + offset + i);
  }

  // What `finish` will read of this unit and the operands of the next one come closer while the tiles are multiplied.
  static void fetch(const Geometry& g, const ConvJob<T>& job, int unit, bool next) {
    const int64_t length = int64_t(g.width) * g.padded, start = int64_t(2) * g.group * unit;
    const int64_t own = g.rows(unit) * length;
    prefetch(job.result.mask, start * length, own);
    if (job.result.with != job.result.mask) prefetch(job.result.with, start * length, own);
    for (int d = 0; d < job.result.destinations; ++d) {
      const Destination<T>& to = job.result.destination[d];
      for (int j = 0; j < to.terms; ++j) prefetch(to.term[j].map, start * length, own);
    }
    if (!next) return;
    const int64_t below = start + 2 * g.group + 1;
    const int64_t rows = g.height - below < 2 * g.group ? g.height - below : 2 * g.group;
    prefetch(job.in.map, below * length, rows * length);
    prefetch(job.in.other, below * length, rows * length);
    if (job.activation) prefetch(job.activation->map, below * length, rows * length);
  }

  static void conv(const Geometry& g, const ConvJob<T>& job, int first, int last, T* memory) {
    const Scratch s = divide(g, memory);
    Ring in, activation;
    in.start(g, s.rows[0]);
    if (job.activation) activation.start(g, s.rows[1]);
    const int parts = blocks(g);
    for (int unit = first; unit < last; ++unit) {
      in.fill(g, job.in, unit, unit > first);
      if (job.activation) activation.fill(g, *job.activation, unit, unit > first);
      fetch(g, job, unit, unit + 1 < last);
      for (int b = 0; b < parts; ++b) {
        const int left = static_cast<int>(int64_t(b) * g.tiles_x / parts);
        const int count = static_cast<int>(int64_t(b + 1) * g.tiles_x / parts) - left;
        transform_input(g, in, left, count, s.tiles);
        multiply(g, s.tiles, job.weights, count);
        transform_output(g, s.tiles, left, count, s.result);
        if (!job.activation) continue;
        transform_input(g, activation, left, count, s.tiles);
        transform_gradient(g, in, left, count, s.gradient);
        accumulate(g, s.tiles, s.gradient, count, job.weight_grad);
      }
      if (job.bias_grad) add_bias_gradient(g, in, unit, job.bias_grad);
      finish(g, job.result, unit, s.result);
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

  // ---- whole maps -----------------------------------------------------------------------------------------------

  static void write(const Geometry& g, const Operand<T>& in, T* out, int first, int last) {
    const int64_t length = int64_t(g.width) * g.padded;
    load_row(in, first * length, (last - first) * g.width, g.padded, out + first * length);
  }

  static void combine(const Geometry& g, const Destination<T>& d, int first, int last) {
    const int64_t length = int64_t(g.width) * g.padded;
    combine_stretch(d, nullptr, first * length, (last - first) * length);
  }

  // An image is a matrix of channels and pixels where its rows lie one after another, else one for each row.
  template <typename Copy>
  static void over_rows(const Geometry& g, int64_t row, int64_t column, const Copy& copy) {
    const bool flat = row == g.width * column;
    const int pixels = flat ? g.height * g.width : g.width;
    for (int y = 0; y < (flat ? 1 : g.height); ++y) copy(y * row, int64_t(y) * g.width * g.padded, pixels);
  }

  static void load_image(const Geometry& g, const Image<const T>& image, T* map) {
    over_rows(g, image.row, image.column, [&](int64_t offset, int64_t to, int pixels) {
      const T* in = image.data + offset;
      if (image.column == 1)
        return transpose_matrix(in, image.channel, g.channels, pixels, map + to, g.padded, g.padded);
      for (int x = 0; x < pixels; ++x)
        for (int c = 0; c < g.padded; ++c)
          map[to + int64_t(x) * g.padded + c] = c < g.channels ? in[x * image.column + c * image.channel] : T(0);
    });
  }

  static void store_image(const Geometry& g, const T* map, const Image<T>& image) {
    over_rows(g, image.row, image.column, [&](int64_t offset, int64_t from, int pixels) {
      T* out = image.data + offset;
      if (image.column == 1)
        return transpose_matrix(map + from, g.padded, pixels, g.channels, out, image.channel, pixels);
      for (int x = 0; x < pixels; ++x)
        for (int c = 0; c < g.channels; ++c)
          out[x * image.column + c * image.channel] = map[from + int64_t(x) * g.padded + c];
    });
  }

  static constexpr ConvKernels<T> table{scratch, conv, pack, unpack, write, combine, sum, load_image, store_image};
};

}  // namespace
