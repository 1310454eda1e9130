// 3x3 convolutions of images of few channels to maps, by units of rows, and the gradients of their weights. Part of the
// body that each conv_<isa>.cpp compiles for its instruction set.

namespace {

template <typename T, int L>
struct Stem : Vectors<T, L> {
  using Base = Vectors<T, L>;
  using Base::all, Base::load, Base::store;
  using typename Base::V;

  static constexpr int kPixels = 8;  // whose sums are in registers

  static void rows(const Geometry& g, const Image<const T>& image, int channels, int unit, T* out) {
    const int count = g.rows(unit) + 2, top = g.unit_rows() * unit - 1, pitch = g.width + 2;
    for (int c = 0; c < channels; ++c)
      for (int i = 0; i < count; ++i, out += pitch) {
        const int y = top + i;
        if (y < 0 || y >= g.height) {
          __builtin_memset(out, 0, sizeof(T) * pitch);
          continue;
        }
        const T* in = image.data + c * image.channel + y * image.row;
        out[0] = out[g.width + 1] = T(0);
        if (image.column == 1) __builtin_memcpy(out + 1, in, sizeof(T) * g.width);
        for (int x = 0; image.column != 1 && x < g.width; ++x) out[x + 1] = in[x * image.column];
      }
  }

  // P pixels of a row, by all taps
  template <int P>
  static inline __attribute__((always_inline)) void pixels(const T* in, int64_t plane, int64_t pitch, int channels,
                                                           const T* weights, int padded, T* out) {
    V sum[P] = {};
    for (int c = 0; c < channels; ++c)
      for (int dy = 0; dy < 3; ++dy)
#pragma GCC unroll 3
        for (int dx = 0; dx < 3; ++dx, weights += padded) {
          const V w = load(weights);
          const T* p = in + c * plane + dy * pitch + dx;
#pragma GCC unroll 8
          for (int k = 0; k < P; ++k) sum[k] += all(p[k]) * w;
        }
#pragma GCC unroll 8
    for (int k = 0; k < P; ++k) store(out + int64_t(k) * padded, sum[k]);
  }

  static __attribute__((noinline)) void conv(const Geometry& g, int channels, int unit, const T* in, const T* weights,
                                             T* out) {
    const int rows = g.rows(unit);
    const int64_t pitch = g.width + 2, plane = (rows + 2) * pitch;
    for (int c = 0; c < g.padded; c += L)
      for (int y = 0; y < rows; ++y) {
        const T* p = in + y * pitch;
        T* q = out + int64_t(y) * g.width * g.padded + c;
        int x = 0;
        for (; x + kPixels <= g.width; x += kPixels)
          pixels<kPixels>(p + x, plane, pitch, channels, weights + c, g.padded, q + int64_t(x) * g.padded);
        for (; x < g.width; ++x)
          pixels<1>(p + x, plane, pitch, channels, weights + c, g.padded, q + int64_t(x) * g.padded);
      }
  }

  // All taps of an image's channel, summed over a row in registers, so that no sum is long.
  static inline __attribute__((always_inline)) void taps(const T* in, int64_t pitch, const T* grad, int width,
                                                         int padded, T* sums) {
    V sum[9] = {};
    for (int x = 0; x < width; ++x) {
      const V d = load(grad + int64_t(x) * padded);
#pragma GCC unroll 9
      for (int k = 0; k < 9; ++k) sum[k] += all(in[k / 3 * pitch + x + k % 3]) * d;
    }
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) store(sums + k * padded, load(sums + k * padded) + sum[k]);
  }

  static __attribute__((noinline)) void gradient(const Geometry& g, int channels, int unit, const T* in, const T* grad,
                                                 T* sums) {
    const int rows = g.rows(unit);
    const int64_t pitch = g.width + 2, length = int64_t(g.width) * g.padded;
    for (int c = 0; c < g.padded; c += L)
      for (int i = 0; i < channels; ++i)
        for (int y = 0; y < rows; ++y)
          taps(in + (int64_t(i) * (rows + 2) + y) * pitch, pitch, grad + y * length + c, g.width, g.padded,
               sums + int64_t(i) * 9 * g.padded + c);
  }

  static constexpr StemKernels<T> table{rows, conv, gradient};
};

}  // namespace
