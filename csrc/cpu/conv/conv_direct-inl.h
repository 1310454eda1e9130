// Convolutions with operands in bfloat16 and sums in float32, as products of tiles (cpu/tiles/tiles.h). Part of the
// body that each conv_<isa>.cpp compiles for its instruction set.
//
// A strip is the rows of a unit, one above and one below, in bfloat16, with one pixel of zeros before each row and after
// the last. Places are counted along it: what the three taps of a row of the filter read of one place lies together, so
// a matrix of places and those values is the strip itself, with rows that overlap. The place behind the last pixel of a
// row has a result too, which nobody reads.

namespace {

template <int L>
struct DirectConv : Conv<float, L> {
  using T = float;
  using Base = Conv<T, L>;
  using Base::clip, Base::fetch, Base::finish, Base::load, Base::load_block, Base::load_padded, Base::store,
      Base::to_bfloat16, Base::transpose, Base::transpose_matrix, Base::widen;
  using typename Base::V, typename Base::Integers;

  static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
  static int64_t pitch(const Geometry& g) { return g.width + 1; }
  static int64_t places(const Geometry& g, int rows) { return rows * pitch(g) - 1; }
  // Of the gradient of weights, where places are what is summed over: in steps of tiles.
  static int64_t steps(const Geometry& g, int rows) { return up(places(g, rows), kTileDepth); }
  // Places from the first of a strip on that it reads, in steps of a transposition.
  static int64_t reach(const Geometry& g, int rows) { return up(steps(g, rows) + 2 * pitch(g) + 2, 2 * 16); }

  // ---- memory of a unit -----------------------------------------------------------------------------------------

  struct Scratch {
    Bfloat16 *in, *activation;  // strips
    T* result;
    Bfloat16 *pairs, *turned;  // places in pairs, [place / 2][padded][2]; [padded][places]
    int64_t* blocks;           // offsets of 16 rows of an operand
  };
  static int64_t line(int64_t bytes) { return up(bytes, 64); }
  static int64_t most_blocks(const Geometry& g) {
    const int64_t of_places = (places(g, g.unit_rows()) + 15) / 16, of_weights = int64_t(9) * g.padded / 16;
    return of_places > of_weights ? of_places : of_weights;
  }
  static Scratch divide(const Geometry& g, T* memory, int64_t* size) {
    const int rows = g.unit_rows();
    const int64_t strip = line(2 * reach(g, rows) * g.padded);
    char *const start = reinterpret_cast<char*>(memory), *p = start;
    auto next = [&](int64_t bytes) {
      char* const at = p;
      p += line(bytes);
      return at;
    };
    Scratch s;
    s.in = reinterpret_cast<Bfloat16*>(next(strip));
    s.activation = reinterpret_cast<Bfloat16*>(next(strip));
    s.result = reinterpret_cast<T*>(next(up(places(g, rows), 16) * g.padded * sizeof(T)));
    s.pairs = reinterpret_cast<Bfloat16*>(next(strip));
    s.turned = reinterpret_cast<Bfloat16*>(next(strip));
    s.blocks = reinterpret_cast<int64_t*>(next(most_blocks(g) * sizeof(int64_t)));
    *size = (p - start) / sizeof(T);
    return s;
  }
  static int64_t scratch(const Geometry& g, int) {
    int64_t size;
    divide(g, nullptr, &size);
    return size;
  }

  // ---- strips ---------------------------------------------------------------------------------------------------

  static void start(const Geometry& g, Bfloat16* strip) {
    const int64_t row = pitch(g) * g.padded, end = (g.unit_rows() + 2) * row;
    for (int64_t i = 0; i < end; i += row) __builtin_memset(strip + i, 0, 2 * g.padded);
    __builtin_memset(strip + end, 0, 2 * (reach(g, g.unit_rows()) * g.padded - end));
  }

  // The last two rows of the unit before are the first two of one that follows.
  static void fill(const Geometry& g, const Operand<T>& in, int unit, bool follows, Bfloat16* strip) {
    const int n = g.unit_rows() + 2, top = g.unit_rows() * unit - 1;
    const int64_t row = pitch(g) * g.padded;
    if (follows) __builtin_memmove(strip, strip + (n - 2) * row, 2 * 2 * row);
    for (int i = follows ? 2 : 0; i < n; ++i) load_padded(g, in, top + i, strip + i * row);
  }

  // Two places of each channel beside each other, zeros from `count` places up to `end`.
  static void pair(const Geometry& g, const Bfloat16* strip, int64_t count, int64_t end, Bfloat16* out) {
    const int padded = g.padded;
    for (int64_t i = 0; i < count; i += 2, out += 2 * padded, strip += 2 * padded)
      for (int c = 0; c < padded; c += L) store_pairs(widen(strip + c), widen(strip + padded + c), out + 2 * c);
    __builtin_memset(out, 0, 2 * (end - up(count, 2)) * padded);
  }
  static inline __attribute__((always_inline)) void store_pairs(Integers even, Integers odd, Bfloat16* out) {
    const Integers both = even | odd << 16;
    __builtin_memcpy(out, &both, sizeof both);
  }

  // ---- products -------------------------------------------------------------------------------------------------

  static int64_t column_block(const Geometry& g) { return int64_t(9) * g.padded * kTileColumns; }

  // Packed weights: [16 output channels][row of the filter][tap in it and input channel, in pairs][16][2]
  static void multiply(const Geometry& g, Channels channels, Tiles& tiles, const Scratch& s, const T* weights,
                       int rows) {
    const int begin = channels.from / kTileColumns, end = channels.to / kTileColumns;
    TileProduct p;
    p.a = s.in, p.block = s.blocks;
    p.a_row = g.padded, p.a_tap = pitch(g) * g.padded;
    p.b = reinterpret_cast<const Bfloat16*>(weights) + begin * column_block(g);
    p.b_pair = 2 * kTileColumns, p.b_tap = 3 * g.padded * kTileColumns, p.b_columns = column_block(g);
    p.c = s.result + channels.from, p.c_row = g.padded;
    p.blocks = static_cast<int>((places(g, rows) + 15) / 16), p.columns = end - begin;
    p.taps = 3, p.depth = 3 * g.padded;
    p.add = false;
    for (int i = 0; i < p.blocks; ++i) s.blocks[i] = int64_t(i) * kTileRows * g.padded;
    if (g.padded <= 64) return tiles.multiply(p);
    // the weights of one row of the filter and of few output channels stay in L1 while all places pass
    p.taps = 1, p.columns = 2;
    for (int n = begin; n < end; n += 2) {
      if (end - n == 1) p.columns = 1;
      for (int t = 0; t < 3; ++t) {
        p.add = t > 0;
        p.a = s.in + t * p.a_tap;
        p.b = reinterpret_cast<const Bfloat16*>(weights) + n * p.b_columns + t * p.b_tap;
        p.c = s.result + n * kTileColumns;
        tiles.multiply(p);
      }
    }
  }

  // gradient of weights [tap][input channel][output channel] += sum over places of activation and gradient
  static void accumulate(const Geometry& g, Tiles& tiles, const Scratch& s, int rows, T* gradient) {
    const int64_t depth = steps(g, rows), length = reach(g, rows), half = length / 2;
    pair(g, s.activation, length, length, s.pairs);
    // two values in bfloat16 travel as one
    transpose_matrix(reinterpret_cast<const T*>(s.pairs), g.padded, static_cast<int>(half), g.padded,
                     reinterpret_cast<T*>(s.turned), half, static_cast<int>(half));
    pair(g, s.in + (pitch(g) + 1) * g.padded, places(g, rows), depth, s.pairs);
    TileProduct p;
    p.a = s.turned, p.block = s.blocks;
    p.a_row = length, p.a_tap = 0;
    p.b = s.pairs;
    p.b_pair = 2 * g.padded, p.b_tap = 0, p.b_columns = 2 * kTileColumns;
    p.c = gradient, p.c_row = g.padded;
    p.columns = g.padded / kTileColumns;
    p.taps = 1, p.depth = static_cast<int>(depth);
    p.add = true;
    p.blocks = 0;
    for (int tap = 0; tap < 9; ++tap)
      for (int c = 0; c < g.padded; c += kTileRows) s.blocks[p.blocks++] = tap / 3 * pitch(g) + tap % 3 + c * length;
    tiles.multiply(p);
  }

  static void add_bias_gradient(const Geometry& g, const Bfloat16* strip, int rows, T* gradient) {
    const Bfloat16* first = strip + (pitch(g) + 1) * g.padded;
    for (int c = 0; c < g.padded; c += L) {
      const V total = Base::over_pixels(places(g, rows), [&](int64_t i) { return load(first + c + i * g.padded); });
      store(gradient + c, load(gradient + c) + total);
    }
  }

  static void conv(const Geometry& g, const ConvJob<T>& job, int first, int last, T* memory) {
    int64_t size;
    const Scratch s = divide(g, memory, &size);
    Tiles tiles;
    start(g, s.in);
    if (job.activation) start(g, s.activation);
    for (int unit = first; unit < last; ++unit) {
      const int rows = g.rows(unit);
      fill(g, job.in, unit, unit > first, s.in);
      fetch(g, job, unit, unit + 1 < last);
      multiply(g, job.out, tiles, s, job.weights, rows);
      if (job.activation) {
        fill(g, *job.activation, unit, unit > first, s.activation);
        accumulate(g, tiles, s, rows, job.weight_grad);
      }
      if (job.bias_grad) add_bias_gradient(g, s.in, rows, job.bias_grad);
      finish(g, job.result, job.out, unit, s.result, pitch(g) * g.padded);
    }
  }

  // ---- weights --------------------------------------------------------------------------------------------------

  // where the pair of an even input channel and a vector of output channels lies
  static Bfloat16* packed_pair(const Geometry& g, T* packed, int tap, int in, int out) {
    const int64_t depth = (int64_t(tap) * g.padded + in) * kTileColumns;
    return reinterpret_cast<Bfloat16*>(packed) + out / kTileColumns * column_block(g) + depth + out % kTileColumns * 2;
  }

  // and for the data gradient a filter turned around, in and out exchanged
  static void pack(const Geometry& g, Channels out, const T* weights, T* forward, T* backward, T* taps) {
    const int width = 9 * g.channels;
    for (int co = out.from; co < out.to; co += L) {
      const int rows = g.channels - co < 0 ? 0 : clip(g.channels - co);
      for (int i = 0; i < width; i += L) {  // taps [ci][tap][L output channels]
        V block[L];
        load_block(weights + int64_t(co - out.from) * width + i, width, rows, clip(width - i), block);
        transpose(block);
        Base::store_block(taps + int64_t(i) * L, L, clip(width - i), L, block);
      }
      auto at = [&](int ci, int tap) { return ci < g.channels ? load(taps + (int64_t(ci) * 9 + tap) * L) : V{}; };
      for (int tap = 0; tap < 9; ++tap)
        for (int ci = 0; ci < g.padded; ci += 2)
          store_pairs(to_bfloat16(at(ci, tap)), to_bfloat16(at(ci + 1, tap)), packed_pair(g, forward, tap, ci, co));
      for (int tap = 0; backward != nullptr && tap < 9; ++tap)
        for (int ci = 0; ci < g.padded; ci += L) {
          V block[L];
          for (int i = 0; i < L; ++i) block[i] = at(ci + i, tap);
          transpose(block);
          for (int i = 0; i < L; i += 2)
            store_pairs(to_bfloat16(block[i]), to_bfloat16(block[i + 1]),
                        packed_pair(g, backward, 8 - tap, co + i, ci));
        }
    }
  }

  static void unpack(const Geometry& g, Channels out, const T* sums, T* gradient, T* taps) {
    const int width = 9 * g.channels;
    for (int co = out.from; co < g.channels && co < out.to; co += L) {
      for (int ci = 0; ci < g.channels; ++ci)
        for (int tap = 0; tap < 9; ++tap)
          store(taps + (int64_t(ci) * 9 + tap) * L, load(sums + (int64_t(tap) * g.padded + ci) * g.padded + co));
      transpose_matrix(taps, L, width, clip(g.channels - co), gradient + int64_t(co) * width, width, width);
    }
  }

  static constexpr ConvKernels<T> table{
      scratch,           conv, nullptr, pack, unpack, Base::write, Base::combine, Base::sum, Base::load_image,
      Base::store_image, {}};
};

}  // namespace
