// The convolution kernels: operands on the way in, results on the way out, whole maps. Part of the body that each
// conv_<isa>.cpp compiles for its instruction set. What the linker could merge with a plain version must not be made
// here: no default constructors of the structs of conv_kernels.h, nothing of the standard library but types.

namespace {

template <typename T, int L, int M = 2>
struct Conv : Domain<T, L, M> {
  using Base = Domain<T, L, M>;
  using Base::accumulate, Base::all, Base::blocks, Base::domain, Base::load, Base::load_or, Base::multiply, Base::pack,
      Base::over_pixels, Base::row_length, Base::store, Base::transform_gradient, Base::transform_input,
      Base::transform_output, Base::transpose_matrix, Base::unpack;
  using typename Base::V;

  // Scratch: a ring of padded rows for each operand, tiles in the domain of frequencies, result rows.
  struct Scratch {
    T* rows[2];
    T* tiles;
    T* gradient;
    T* result;
  };
  static Scratch divide(const Geometry& g, int images, T* p) {
    const int64_t ring = (M * g.group + 2) * row_length(g), tiles = images * domain(g);
    return {{p, p + ring}, p + 2 * ring, p + 2 * ring + tiles, p + 2 * ring + 2 * tiles};
  }
  static int64_t scratch(const Geometry& g, int images) {
    return 2 * (M * g.group + 2) * row_length(g) + 2 * images * domain(g) + M * g.group * row_length(g);
  }

  // ---- operands -------------------------------------------------------------------------------------------------

  template <bool kOther, bool kMask, typename Stored>
  static void load_pixels(const Operand<T>& in, int64_t offset, int width, int padded, Stored* dst) {
    const T floor = in.relu ? T(0) : -std::numeric_limits<T>::infinity();
    const V low = all(floor);
    for (int c = 0; c < padded; c += L) {
      const V scale = load_or(in.scale ? in.scale + c : nullptr, T(1));
      const V shift = load_or(in.shift ? in.shift + c : nullptr, T(0));
      const V other_scale = load_or(in.other_scale ? in.other_scale + c : nullptr, T(0));
      const T* map = in.map + offset + c;
      const T* other = in.other + (kOther ? offset + c : 0);
      Stored* out = dst + c;
      for (int x = 0; x < width; ++x, map += padded, other += kOther ? padded : 0, out += padded) {
        V v = load(map) * scale + shift;
        if (kOther) v += load(other) * other_scale;
        v = v < low ? low : v;
        if (kMask) v = load(other) > V{} ? v : V{};
        store(out, v);
      }
    }
  }

  template <typename Stored>
  static void load_row(const Operand<T>& in, int64_t offset, int width, int padded, Stored* dst) {
    if (in.mask_by_other) return load_pixels<true, true>(in, offset, width, padded, dst);
    if (in.other) return load_pixels<true, false>(in, offset, width, padded, dst);
    load_pixels<false, false>(in, offset, width, padded, dst);
  }

  // Row y of the image, or zeros outside it, between one pixel of zeros on either side.
  template <typename Stored>
  static __attribute__((noinline)) void load_padded(const Geometry& g, const Operand<T>& in, int y, Stored* dst) {
    const int64_t length = int64_t(g.width) * g.padded;
    if (y < 0 || y >= g.height) {
      __builtin_memset(dst + g.padded, 0, sizeof(Stored) * length);
    } else {
      load_row(in, y * length, g.width, g.padded, dst + g.padded);
    }
  }

  // The rows that a unit reads: its own, one above and one below. Two of the unit before are at hand.
  struct Ring {
    T* row[kMostRows + 2];
    void start(const Geometry& g, T* memory) {
      const int64_t length = Base::row_length(g);
      for (int i = 0; i < M * g.group + 2; ++i) row[i] = memory + i * length;
      __builtin_memset(memory, 0, sizeof(T) * length * (M * g.group + 2));
    }
    void fill(const Geometry& g, const Operand<T>& in, int unit, bool follows) {
      const int n = M * g.group + 2, top = M * g.group * unit - 1;
      if (follows) {
        T* above[2] = {row[n - 2], row[n - 1]};
        for (int i = n - 1; i >= 2; --i) row[i] = row[i - 2];
        row[0] = above[0], row[1] = above[1];
      }
      for (int i = follows ? 2 : 0; i < n; ++i) load_padded(g, in, top + i, row[i]);
    }
  };

  // ---- results --------------------------------------------------------------------------------------------------

  static constexpr int kSimple = 2;  // terms that a result meets in registers

  // The value of a row of results into its first destination, with so many terms, and where more follow also back into
  // the row.
  template <bool kMask, int kCount>
  static void finish_pixels(const Result<T>& r, Channels channels, int64_t offset, int width, int padded, bool more,
                            T* row) {
    const T floor = r.relu ? T(0) : -std::numeric_limits<T>::infinity();
    const V low = all(floor);
    const Destination<T>& d = r.destination[0];
    const V own = all(d.own);
    V factor[kSimple];
    for (int j = 0; j < kCount; ++j) factor[j] = all(d.term[j].coefficient);
    for (int c = channels.from; c < channels.to; c += L) {
      const V bias = load_or(r.bias ? r.bias + c : nullptr, T(0));
      const V scale = load_or(r.scale ? r.scale + c : nullptr, T(1));
      const V shift = load_or(r.shift ? r.shift + c : nullptr, T(0));
      const V mask_scale = load_or(r.mask_scale ? r.mask_scale + c : nullptr, T(1));
      const V mask_shift = load_or(r.mask_shift ? r.mask_shift + c : nullptr, T(0));
      const T* mask = r.mask + (kMask ? offset + c : 0);
      const T* term[kSimple];
      for (int j = 0; j < kCount; ++j) term[j] = d.term[j].map + offset + c;
      T *p = row + c, *out = d.out + offset + c;
      for (int64_t i = 0; i < int64_t(width) * padded; i += padded) {
        V v = load(p + i) + bias;
        v = v < low ? low : v;
        v = v * scale + shift;
        if (kMask) v = load(mask + i) * mask_scale + mask_shift > V{} ? v : V{};
        if (more) store(p + i, v);
        v *= own;
        for (int j = 0; j < kCount; ++j) v += load(term[j] + i) * factor[j];
        store(out + i, v);
      }
    }
  }

  // Stretches of as many values, so far apart.
  struct Stretches {
    int64_t count, length, apart;
  };

  // out = own * value + sum of terms
  template <int kCount>
  static void combine_terms(const Destination<T>& d, const T* value, int64_t offset, const Stretches& s, int first,
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
    for (int64_t start = 0, n = 0; n < s.count; ++n, start += s.apart)
      for (int64_t i = start; i < start + s.length; i += L) {
        V v = from ? load(from + i) * own : V{};
        for (int j = 0; j < kCount; ++j) v += load(map[j] + i) * factor[j];
        store(out + i, v);
      }
  }

  static void combine_stretches(const Destination<T>& d, const T* value, int64_t offset, const Stretches& s) {
    int first = 0;
    do {
      const int left = d.terms - first;
      const bool again = first > 0;
      switch (left < 4 ? left : 4) {
        case 0: combine_terms<0>(d, value, offset, s, first, again); break;
        case 1: combine_terms<1>(d, value, offset, s, first, again); break;
        case 2: combine_terms<2>(d, value, offset, s, first, again); break;
        case 3: combine_terms<3>(d, value, offset, s, first, again); break;
        default: combine_terms<4>(d, value, offset, s, first, again);
      }
      first += 4;
    } while (first < d.terms);
  }

  static __attribute__((noinline)) void sum(const Geometry& g, const T* map, const Result<T>& r, int unit,
                                            Channels channels) {
    const int64_t pixels = int64_t(g.rows(unit)) * g.width, start = int64_t(g.unit_rows()) * unit * g.width * g.padded;
    T* partial = r.partial + int64_t(unit) * 2 * g.padded;
    for (int c = channels.from; c < channels.to; c += L) {
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
        second = over_pixels(pixels,
                             [&](int64_t i) { return load(p + i * g.padded) * (load(with + i * g.padded) - center); });
      }
      store(partial + c, total);
      store(partial + g.padded + c, second);
    }
  }

  template <bool kMask>
  static void finish_row(const Result<T>& r, Channels channels, int64_t offset, int width, int padded, bool more,
                         T* row) {
    switch (r.destination[0].terms) {
      case 1: return finish_pixels<kMask, 1>(r, channels, offset, width, padded, more, row);
      case kSimple: return finish_pixels<kMask, kSimple>(r, channels, offset, width, padded, more, row);
      default: finish_pixels<kMask, 0>(r, channels, offset, width, padded, more, row);
    }
  }

  // rows of results lie `pitch` apart
  static __attribute__((noinline)) void finish(const Geometry& g, const Result<T>& r, Channels channels, int unit,
                                               T* result, int64_t pitch) {
    const int64_t length = int64_t(g.width) * g.padded;
    const bool whole = channels.count() == g.padded;
    const Stretches stretches{whole ? 1 : g.width, whole ? length : channels.count(), g.padded};
    const bool simple = r.destination[0].terms <= kSimple, more = r.destinations > 1 || !simple;
    for (int i = 0; i < g.rows(unit); ++i) {
      T* row = result + i * pitch;
      const int64_t offset = (int64_t(g.unit_rows()) * unit + i) * length;
      if (r.mask)
        finish_row<true>(r, channels, offset, g.width, g.padded, more, row);
      else
        finish_row<false>(r, channels, offset, g.width, g.padded, more, row);
      for (int d = simple ? 1 : 0; d < r.destinations; ++d)
        combine_stretches(r.destination[d], row + channels.from, offset + channels.from, stretches);
    }
    if (r.sums != Sums::none) sum(g, r.destination[0].out, r, unit, channels);
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
    const int64_t length = int64_t(g.width) * g.padded, start = int64_t(g.unit_rows()) * unit;
    const int64_t own = g.rows(unit) * length;
    prefetch(job.result.mask, start * length, own);
    if (job.result.with != job.result.mask) prefetch(job.result.with, start * length, own);
    for (int d = 0; d < job.result.destinations; ++d) {
      const Destination<T>& to = job.result.destination[d];
      for (int j = 0; j < to.terms; ++j) prefetch(to.term[j].map, start * length, own);
    }
    if (!next) return;
    const int64_t below = start + g.unit_rows() + 1;
    const int64_t rows = g.height - below < g.unit_rows() ? g.height - below : g.unit_rows();
    prefetch(job.in.map, below * length, rows * length);
    prefetch(job.in.other, below * length, rows * length);
    if (job.activation) prefetch(job.activation->map, below * length, rows * length);
  }

  static void conv(const Geometry& g, const ConvJob<T>& job, int first, int last, T* memory) {
    const Scratch s = divide(g, 1, memory);
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
        transform_input(g, {0, 1}, in.row, left, count, s.tiles);
        multiply(g, job.out, s.tiles, job.weights, g.group * count);
        transform_output(g, job.out, {0, 1}, s.tiles, left, count, s.result);
        if (!job.activation) continue;
        transform_input(g, {0, 1}, activation.row, left, count, s.tiles);
        transform_gradient(g, {0, 1}, in.row, left, count, s.gradient);
        accumulate(g, s.tiles, s.gradient, g.group * count, job.weight_grad);
      }
      if (job.bias_grad) add_bias_gradient(g, in, unit, job.bias_grad);
      finish(g, job.result, job.out, unit, s.result, row_length(g));
    }
  }

  static void conv_images(const Geometry& g, const ConvJob<T>* job, int images, T* memory) {
    const Scratch s = divide(g, images, memory);
    const int tiles = images * g.group * g.tiles_x;
    const bool gradient = job->activation;
    Ring ring;
    ring.start(g, s.rows[0]);
    for (int m = 0; m < images; ++m) {
      ring.fill(g, job[m].in, 0, false);
      transform_input(g, {m, images}, ring.row, 0, g.tiles_x, s.tiles);
      if (gradient) transform_gradient(g, {m, images}, ring.row, 0, g.tiles_x, s.gradient);
      if (job->bias_grad) add_bias_gradient(g, ring, 0, job->bias_grad);
    }
    multiply(g, job->out, s.tiles, job->weights, tiles);
    for (int m = 0; m < images; ++m) {
      transform_output(g, job->out, {m, images}, s.tiles, 0, g.tiles_x, s.result);
      finish(g, job[m].result, job->out, 0, s.result, row_length(g));
    }
    if (!gradient) return;
    for (int m = 0; m < images; ++m) {
      ring.fill(g, *job[m].activation, 0, false);
      transform_input(g, {m, images}, ring.row, 0, g.tiles_x, s.tiles);
    }
    accumulate(g, s.tiles, s.gradient, tiles, job->weight_grad);
  }

  // ---- whole maps -----------------------------------------------------------------------------------------------

  static void write(const Geometry& g, const Operand<T>& in, T* out, int first, int last) {
    const int64_t length = int64_t(g.width) * g.padded;
    load_row(in, first * length, (last - first) * g.width, g.padded, out + first * length);
  }

  static void combine(const Geometry& g, const Destination<T>& d, int first, int last) {
    const int64_t length = int64_t(g.width) * g.padded;
    combine_stretches(d, nullptr, first * length, {1, (last - first) * length, 0});
  }

  // An image is a matrix of channels and pixels where its rows lie one after another, else one for each row.
  template <typename Copy>
  static void over_rows(const Geometry& g, int64_t row, int64_t column, const Copy& copy) {
    const bool flat = row == g.width * column;
    const int pixels = flat ? g.height * g.width : g.width;
    for (int y = 0; y < (flat ? 1 : g.height); ++y) copy(y * row, int64_t(y) * g.width * g.padded, pixels);
  }

  // Channels that lie as in a map.
  static bool like_map(const Geometry& g, int64_t channel, int64_t column) {
    return channel == 1 && column == g.padded && g.channels == g.padded;
  }

  static void load_image(const Geometry& g, const Image<const T>& image, T* map) {
    over_rows(g, image.row, image.column, [&](int64_t offset, int64_t to, int pixels) {
      const T* in = image.data + offset;
      if (like_map(g, image.channel, image.column))
        return void(__builtin_memcpy(map + to, in, sizeof(T) * pixels * g.padded));
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
      if (like_map(g, image.channel, image.column))
        return void(__builtin_memcpy(out, map + from, sizeof(T) * pixels * g.padded));
      if (image.column == 1)
        return transpose_matrix(map + from, g.padded, pixels, g.channels, out, image.channel, pixels);
      for (int x = 0; x < pixels; ++x)
        for (int c = 0; c < g.channels; ++c)
          out[x * image.column + c * image.channel] = map[from + int64_t(x) * g.padded + c];
    });
  }

  static constexpr ConvKernels<T> table{scratch, conv, conv_images, pack,        unpack,           write,
                                        combine, sum,  load_image,  store_image, Stem<T, L>::table};
};

}  // namespace
