// One dimension of Winograd F(M x M, 3x3): what turns pixels and weights into frequencies and back. Part of the body
// that each conv_<isa>.cpp compiles for its instruction set.

namespace {

template <typename T, int L, int M>
struct Line;

// Points 0, 1, -1 and infinity.
template <typename T, int L>
struct Line<T, L, 2> : Vectors<T, L> {
  using Base = Vectors<T, L>;
  using Base::all;
  using typename Base::V;

  // B^T d: frequencies of pixels
  static inline __attribute__((always_inline)) void input(const V* d, V* out) {
    out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
  }
  // A^T m: pixels of frequencies
  template <bool kFirst>
  static inline __attribute__((always_inline)) void output(const V* m, V* out) {
    out[0] = kFirst ? m[0] + (m[1] + m[2]) : (m[0] + m[1]) + m[2];
    out[1] = m[1] - m[2] - m[3];
  }
  // A y: the transpose of output
  static inline __attribute__((always_inline)) void gradient(const V* y, V* out) {
    out[0] = y[0], out[1] = y[0] + y[1], out[2] = y[0] - y[1], out[3] = -y[1];
  }
  // G w
  static inline __attribute__((always_inline)) void weights(V a, V b, V c, V* out) {
    const V half = all(T(0.5)), sum = (a + c) * half, middle = b * half;
    out[0] = a, out[1] = sum + middle, out[2] = sum - middle, out[3] = c;
  }
  // G^T d
  static inline __attribute__((always_inline)) void weight_gradient(const V* d, V* out) {
    const V half = all(T(0.5)), sum = (d[1] + d[2]) * half;
    out[0] = d[0] + sum, out[1] = (d[1] - d[2]) * half, out[2] = sum + d[3];
  }
};

// Points 0, 1, -1, 2, -2 and infinity.
template <typename T, int L>
struct Line<T, L, 4> : Vectors<T, L> {
  using Base = Vectors<T, L>;
  using Base::all;
  using typename Base::V;

  static inline __attribute__((always_inline)) void input(const V* d, V* out) {
    const V two = all(T(2)), four = all(T(4)), five = all(T(5));
    const V even = d[4] - four * d[2], odd = d[3] - four * d[1];
    const V near = d[4] - d[2], apart = two * (d[3] - d[1]);
    out[0] = four * d[0] - five * d[2] + d[4];
    out[1] = even + odd, out[2] = even - odd;
    out[3] = near + apart, out[4] = near - apart;
    out[5] = four * d[1] - five * d[3] + d[5];
  }
  template <bool>
  static inline __attribute__((always_inline)) void output(const V* m, V* out) {
    const V two = all(T(2)), four = all(T(4)), eight = all(T(8));
    const V sum = m[1] + m[2], apart = m[1] - m[2], far = m[3] + m[4], wide = m[3] - m[4];
    out[0] = m[0] + sum + far;
    out[1] = apart + two * wide;
    out[2] = sum + four * far;
    out[3] = apart + eight * wide + m[5];
  }
  static inline __attribute__((always_inline)) void gradient(const V* y, V* out) {
    const V two = all(T(2)), four = all(T(4));
    const V even = y[0] + y[2], odd = y[1] + y[3];
    const V wide = y[0] + four * y[2], twice = two * (y[1] + four * y[3]);
    out[0] = y[0];
    out[1] = even + odd, out[2] = even - odd;
    out[3] = wide + twice, out[4] = wide - twice;
    out[5] = y[3];
  }
  static inline __attribute__((always_inline)) void weights(V a, V b, V c, V* out) {
    const V two = all(T(2)), four = all(T(4)), sixth = all(T(1) / T(6)), small = all(T(1) / T(24));
    const V sum = (a + c) * sixth, middle = b * sixth, wide = (a + four * c) * small, half = two * b * small;
    out[0] = a * all(T(0.25));
    out[1] = -(sum + middle), out[2] = middle - sum;
    out[3] = wide + half, out[4] = wide - half;
    out[5] = c;
  }
  static inline __attribute__((always_inline)) void weight_gradient(const V* d, V* out) {
    const V quarter = all(T(0.25)), sixth = all(T(1) / T(6)), small = all(T(1) / T(24)), twelfth = all(T(1) / T(12));
    const V sum = (d[1] + d[2]) * sixth, far = d[3] + d[4];
    out[0] = quarter * d[0] - sum + far * small;
    out[1] = (d[2] - d[1]) * sixth + (d[3] - d[4]) * twelfth;
    out[2] = far * sixth - sum + d[5];
  }
};

}  // namespace
