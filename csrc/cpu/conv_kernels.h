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
  // one line more than the tiles, so that the 16 frequencies do not fall into one set of the cache
  static int64_t frequency(const Geometry& g) { return int64_t(tiles(g)) * g.padded + 16; }
  static int64_t row(const Geometry& g) { return int64_t(2 * g.tiles_x + 2) * g.padded; }

  // Scratch of a unit. A ring of padded rows for each operand, tiles in the domain of frequencies, result rows.
  struct Scratch {
    T* rows[2];
    T* input;
    T* output;
    T* result;
  };
  static Scratch divide(const Geometry& g, T* p) {
    const int64_t ring = (2 * g.group + 2) * row(g), frequencies = 16 * frequency(g);
    return {{p, p + ring}, p + 2 * ring, p + 2 * ring + frequencies, p + 2 * ring + 2 * frequencies};
  }
  static int64_t scratch(const Geometry& g) {
    return 2 * (2 * g.group + 2) * row(g) + 32 * frequency(g) + 2 * g.group * row(g);
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
  static void load_padded(const Geometry& g, const Operand<T>& in, int y, T* dst) {
    const int64_t length = int64_t(g.width) * g.padded;
    if (y < 0 || y >= g.height) {
      __builtin_memset(dst + g.padded, 0, sizeof(T) * length);
    } else {
      load_row(in, y * length, g.width, g.padded, dst + g.padded);
    }
  }

  // The rows that a unit reads: its own, one above and one below. Two of the unit before are at hand.
  struct Ring {
    T* row[2 * 16 + 2];
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

  static inline __attribute__((always_inline)) void down(const T* const* rows, int64_t x, V* out) {
    const V d0 = load(rows[0] + x), d1 = load(rows[1] + x), d2 = load(rows[2] + x), d3 = load(rows[3] + x);
    out[0] = d0 - d2, out[1] = d1 + d2, out[2] = d2 - d1, out[3] = d1 - d3;
  }

  // B^T d B of 4x4 pixels, tile by tile: [16][channel vector][tile][L]
  static void transform_input(const Geometry& g, const Ring& ring, int first, int count, T* dst) {
    const int64_t frequency = Conv::frequency(g);
    const int n = g.group * count;
    for (int c = 0; c < g.padded; c += L)
      for (int r = 0; r < g.group; ++r) {
        const T* const* rows = ring.row + 2 * r;
        T* out = dst + (int64_t(c / L) * n + r * count) * L;
        int64_t x = int64_t(2 * first) * g.padded + c;
        V a[4], b[4], e[4], f[4];
        down(rows, x, a), down(rows, x + g.padded, b);
        for (int t = 0; t < count; ++t, out += L) {
          x += 2 * g.padded;
          down(rows, x, e), down(rows, x + g.padded, f);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            T* to = out + 4 * i * frequency;
            store(to, a[i] - e[i]);
            store(to + frequency, b[i] + e[i]);
            store(to + 2 * frequency, e[i] - b[i]);
            store(to + 3 * frequency, b[i] - f[i]);
            a[i] = e[i], b[i] = f[i];
          }
        }
      }
  }

  // A^T m A: the 2x2 pixels of each tile
  static void transform_output(const Geometry& g, const T* src, int first, int count, T* dst) {
    const int64_t frequency = Conv::frequency(g), length = Conv::row(g);
    const int n = g.group * count;
    for (int c = 0; c < g.padded; c += L)
      for (int r = 0; r < g.group; ++r) {
        const T* in = src + (int64_t(c / L) * n + r * count) * L;
        T* out = dst + 2 * r * length + int64_t(2 * first) * g.padded + c;
        for (int t = 0; t < count; ++t, in += L, out += 2 * g.padded) {
          V p[4], q[4];
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) {
            const V m0 = load(in + j * frequency), m1 = load(in + (4 + j) * frequency);
            const V m2 = load(in + (8 + j) * frequency), m3 = load(in + (12 + j) * frequency);
            p[j] = m0 + m1 + m2, q[j] = m1 - m2 - m3;
          }
          store(out, p[0] + p[1] + p[2]);
          store(out + g.padded, p[1] - p[2] - p[3]);
          store(out + length, q[0] + q[1] + q[2]);
          store(out + length + g.padded, q[1] - q[2] - q[3]);
        }
      }
  }

  // A y A^T of the unit's own 2x2 pixels: the transpose of transform_output
  static void transform_gradient(const Geometry& g, const Ring& ring, int first, int count, T* dst) {
    const int64_t frequency = Conv::frequency(g);
    const int n = g.group * count;
    for (int c = 0; c < g.padded; c += L)
      for (int r = 0; r < g.group; ++r) {
        const T* top = ring.row[2 * r + 1] + int64_t(2 * first + 1) * g.padded + c;
        const T* bottom = ring.row[2 * r + 2] + int64_t(2 * first + 1) * g.padded + c;
        T* out = dst + (int64_t(c / L) * n + r * count) * L;
        for (int t = 0; t < count; ++t, top += 2 * g.padded, bottom += 2 * g.padded, out += L) {
          const V a = load(top), b = load(top + g.padded), e = load(bottom), f = load(bottom + g.padded);
          const V left[4] = {a, a + e, a - e, -e}, right[4] = {b, b + f, b - f, -f};
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            T* to = out + 4 * i * frequency;
            store(to, left[i]);
            store(to + frequency, left[i] + right[i]);
            store(to + 2 * frequency, left[i] - right[i]);
            store(to + 3 * frequency, -right[i]);
          }
        }
      }
  }

  // ---- products -------------------------------------------------------------------------------------------------

  // c[m][n] (+)= sum_k a[m][k] b[k][n], with N vectors n; rows of a lie A apart and one k is `a_step` on
  template <int M, int N, int A, bool kAdd>
  static void product(const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step, int64_t b_next,
                      int depth, int panel, T* c, int64_t c_step, int64_t c_next) {
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

  // Registers for M x N sums, N vectors of b and a broadcast.
  static constexpr bool kWide = sizeof(T) * L == 64;
  static constexpr int kLines = kWide ? 4 : 2;
  template <int N>
  static constexpr int rows_at_once() {
    return kWide ? (N == 1 ? 16 : N == 2 ? 12 : 6) : (N == 1 ? 12 : 6);
  }

  template <int N, int A, bool kAdd>
  static void product_rows(int rows, const T* a, int64_t a_step, int64_t a_panel, const T* b, int64_t b_step,
                           int64_t b_next, int depth, int panel, T* c, int64_t c_step, int64_t c_next) {
    constexpr int M = rows_at_once<N>();
    int m = 0;
    auto some = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      for (; m + kCount <= rows; m += kCount)
        product<kCount, N, A, kAdd>(a + m * A, a_step, a_panel, b, b_step, b_next, depth, panel, c + m * c_step,
                                    c_step, c_next);
    };
    some(std::integral_constant<int, M>{});
    if (rows - m >= 8) some(std::integral_constant<int, 8>{});
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 1>{});
  }

  // frequencies of the output from those of the input: m[t][co] = sum_ci v[t][ci] u[ci][co]
  static void multiply(const Geometry& g, const T* v, const T* u, int count, T* m) {
    const int64_t frequency = Conv::frequency(g);
    const int n = g.group * count;
    for (int f = 0; f < 16; ++f, v += frequency, m += frequency, u += int64_t(g.channels) * g.padded) {
      int c = 0;
      auto lines = [&](auto width) {
        constexpr int N = decltype(width)::value;
        for (; c + N * L <= g.padded; c += N * L)
          product_rows<N, L, false>(n, v, 1, int64_t(n) * L, u + c, g.padded, L, g.channels, L, m + int64_t(c) * n, L,
                                    int64_t(n) * L);
      };
      lines(std::integral_constant<int, kLines>{});
      if (kLines > 2) lines(std::integral_constant<int, 2>{});
      lines(std::integral_constant<int, 1>{});
    }
  }

  // du[ci][co] += sum_t v[t][ci] d[t][co]
  static void accumulate(const Geometry& g, const T* v, const T* d, int count, T* du) {
    const int64_t frequency = Conv::frequency(g);
    const int n = g.group * count;
    for (int f = 0; f < 16; ++f, v += frequency, d += frequency, du += int64_t(g.channels) * g.padded)
      for (int ci = 0; ci < g.channels; ci += L) {
        const int rows = g.channels - ci < L ? g.channels - ci : L;
        int c = 0;
        auto lines = [&](auto width) {
          constexpr int N = decltype(width)::value;
          for (; c + N * L <= g.padded; c += N * L)
            product_rows<N, 1, true>(rows, v + int64_t(ci) * n, L, 0, d + int64_t(c) * n, L, int64_t(n) * L, n, n,
                                     du + int64_t(ci) * g.padded + c, g.padded, L);
        };
        lines(std::integral_constant<int, kLines>{});
        if (kLines > 2) lines(std::integral_constant<int, 2>{});
        lines(std::integral_constant<int, 1>{});
      }
  }

  // ---- results --------------------------------------------------------------------------------------------------

  template <bool kMask>
  static void finish_pixels(const Result<T>& r, int64_t offset, int width, int padded, T* row) {
    const T floor = r.relu ? T(0) : -std::numeric_limits<T>::infinity();
    const V low = all(floor);
    for (int c = 0; c < padded; c += L) {
      const V bias = load_or(r.bias ? r.bias + c : nullptr, T(0));
      const V scale = load_or(r.scale ? r.scale + c : nullptr, T(1));
      const V shift = load_or(r.shift ? r.shift + c : nullptr, T(0));
      const V mask_scale = load_or(r.mask_scale ? r.mask_scale + c : nullptr, T(1));
      const V mask_shift = load_or(r.mask_shift ? r.mask_shift + c : nullptr, T(0));
      const T* mask = r.mask + (kMask ? offset + c : 0);
      T* p = row + c;
      for (int x = 0; x < width; ++x, p += padded, mask += kMask ? padded : 0) {
        V v = load(p) + bias;
        v = v < low ? low : v;
        v = v * scale + shift;
        if (kMask) v = load(mask) * mask_scale + mask_shift > V{} ? v : V{};
        store(p, v);
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

  static void sum(const Geometry& g, const T* map, const Result<T>& r, int unit) {
    const int rows = g.rows(unit);
    const int64_t pixels = int64_t(rows) * g.width, start = int64_t(2) * g.group * unit * g.width * g.padded;
    T* partial = r.partial + int64_t(unit) * 2 * g.padded;
    for (int c = 0; c < g.padded; c += L) {
      const T* p = map + start + c;
      V total{}, second{};
      if (r.sums == Sums::moments) {
        for (int64_t i = 0; i < pixels; ++i) total += load(p + i * g.padded);
        total *= all(T(1) / static_cast<T>(pixels));
        for (int64_t i = 0; i < pixels; ++i) {
          const V apart = load(p + i * g.padded) - total;
          second += apart * apart;
        }
      } else {
        const T* with = r.with + start + c;
        const V center = load_or(r.center ? r.center + c : nullptr, T(0));
        for (int64_t i = 0; i < pixels; ++i) {
          const V v = load(p + i * g.padded);
          total += v;
          second += v * (load(with + i * g.padded) - center);
        }
      }
      store(partial + c, total);
      store(partial + g.padded + c, second);
    }
  }

  static void finish(const Geometry& g, const Result<T>& r, int unit, T* result) {
    const int64_t length = int64_t(g.width) * g.padded;
    for (int i = 0; i < g.rows(unit); ++i) {
      T* row = result + i * Conv::row(g);
      const int64_t offset = (int64_t(2) * g.group * unit + i) * length;
      if (r.mask)
        finish_pixels<true>(r, offset, g.width, g.padded, row);
      else
        finish_pixels<false>(r, offset, g.width, g.padded, row);
      for (int d = 0; d < r.destinations; ++d) combine_stretch(r.destination[d], row, offset, length);
    }
    if (r.sums != Sums::none) sum(g, r.destination[0].out, r, unit);
  }

  static void add_bias_gradient(const Geometry& g, const Ring& ring, int unit, T* gradient) {
    for (int c = 0; c < g.padded; c += L) {
      V total{};
      for (int i = 0; i < g.rows(unit); ++i) {
        const T* p = ring.row[i + 1] + g.padded + c;
        for (int x = 0; x < g.width; ++x) total += load(p + int64_t(x) * g.padded);
      }
      store(gradient + c, load(gradient + c) + total);
    }
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
      for (int b = 0; b < parts; ++b) {
        const int left = b * g.tiles_x / parts, count = (b + 1) * g.tiles_x / parts - left;
        transform_input(g, in, left, count, s.input);
        multiply(g, s.input, job.weights, count, s.output);
        transform_output(g, s.output, left, count, s.result);
        if (!job.activation) continue;
        transform_input(g, activation, left, count, s.input);
        transform_gradient(g, in, left, count, s.output);
        accumulate(g, s.input, s.output, count, job.weight_grad);
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
    for (int turned = 0; turned < (backward ? 2 : 1); ++turned) {
      // [tap][row][column], row the channel read and column the channel written
      for (int64_t i = 0; i < 9 * plane; ++i) taps[i] = T(0);
      for (int co = 0; co < g.channels; ++co)
        for (int ci = 0; ci < g.channels; ++ci) {
          const T* w = weights + (int64_t(co) * g.channels + ci) * 9;
          T* to = taps + (turned ? int64_t(co) * g.padded + ci : int64_t(ci) * g.padded + co);
          for (int k = 0; k < 9; ++k) to[k * plane] = w[turned ? 8 - k : k];
        }
      T* out = turned ? backward : transformed;
      for (int64_t i = 0; i < plane; i += L) {
        V rows[3][4], column[4];
        for (int k = 0; k < 3; ++k)
          spread(load(taps + 3 * k * plane + i), load(taps + (3 * k + 1) * plane + i),
                 load(taps + (3 * k + 2) * plane + i), rows[k]);
        for (int j = 0; j < 4; ++j) {
          spread(rows[0][j], rows[1][j], rows[2][j], column);
          for (int k = 0; k < 4; ++k) store(out + (4 * k + j) * plane + i, column[k]);
        }
      }
    }
  }

  // G^T du G: the gradient of weights [co][ci][3][3]
  static void unpack(const Geometry& g, const T* transformed, T* gradient, T* taps) {
    const int64_t plane = int64_t(g.channels) * g.padded;
    for (int64_t i = 0; i < plane; i += L) {
      V columns[4][3], row[3];
      for (int j = 0; j < 4; ++j)
        gather(load(transformed + j * plane + i), load(transformed + (4 + j) * plane + i),
               load(transformed + (8 + j) * plane + i), load(transformed + (12 + j) * plane + i), columns[j]);
      for (int k = 0; k < 3; ++k) {
        gather(columns[0][k], columns[1][k], columns[2][k], columns[3][k], row);
        for (int j = 0; j < 3; ++j) store(taps + (3 * k + j) * plane + i, row[j]);
      }
    }
    for (int co = 0; co < g.channels; ++co)
      for (int ci = 0; ci < g.channels; ++ci)
        for (int k = 0; k < 9; ++k)
          gradient[(int64_t(co) * g.channels + ci) * 9 + k] = taps[k * plane + int64_t(ci) * g.padded + co];
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

  static void load_image(const Geometry& g, const Image<const T>& image, T* map) {
    for (int y = 0; y < g.height; ++y)
      for (int x0 = 0; x0 < g.width; x0 += 16) {
        const int x1 = x0 + 16 < g.width ? x0 + 16 : g.width;
        T* out = map + int64_t(y) * g.width * g.padded;
        for (int c = 0; c < g.padded; ++c) {
          const T* in = image.data + y * image.row + c * image.channel;
          for (int x = x0; x < x1; ++x) out[int64_t(x) * g.padded + c] = c < g.channels ? in[x * image.column] : T(0);
        }
      }
  }

  static void store_image(const Geometry& g, const T* map, const Image<T>& image) {
    for (int y = 0; y < g.height; ++y)
      for (int x0 = 0; x0 < g.width; x0 += 16) {
        const int x1 = x0 + 16 < g.width ? x0 + 16 : g.width;
        const T* in = map + int64_t(y) * g.width * g.padded;
        for (int c = 0; c < g.channels; ++c) {
          T* out = image.data + y * image.row + c * image.channel;
          for (int x = x0; x < x1; ++x) out[x * image.column] = in[int64_t(x) * g.padded + c];
        }
      }
  }

  static constexpr ConvKernels<T> table{scratch, conv, pack, unpack, write, combine, sum, load_image, store_image};
};

}  // namespace
