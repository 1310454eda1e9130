// The bodies of attention_kernels.h. Part of what each instances/graph_<isa>.cpp compiles for its instruction set;
// included there after every other header.

namespace {

// Calls f(k, n) for successive k below `count`, n a constant: as many as are taken together.
template <typename F>
inline __attribute__((always_inline)) void in_chunks(int64_t count, const F& f) {
  int64_t k = 0;
  for (; count - k >= 8; k += 8) f(k, std::integral_constant<int, 8>{});
  if (count - k >= 4) f(k, std::integral_constant<int, 4>{}), k += 4;
  if (count - k >= 2) f(k, std::integral_constant<int, 2>{}), k += 2;
  if (count - k >= 1) f(k, std::integral_constant<int, 1>{});
}

// exp(x) for x <= 0; zero where it would be less than the smallest normal number.
template <typename T, int L>
struct Exponential {
  using M = Vectors<T, L>;
  using V = typename M::V;
  using Integers = decltype(V{} < V{});
  static constexpr bool kSingle = sizeof(T) == 4;
  static constexpr int kTerms = kSingle ? 7 : 13, kMantissa = kSingle ? 23 : 52, kBias = kSingle ? 127 : 1023;
  static constexpr T kLeast = kSingle ? T(-87.0) : T(-708.0);
  static constexpr T kShift = kSingle ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa: rounds to integers
  // log(2), the first part with zeros at its end
  static constexpr T kHigh = kSingle ? T(0.693359375) : T(0.6931471803691238), kLog = T(0.6931471805599453);
  static constexpr T kLow = kSingle ? T(-2.1219444005469057e-4) : T(1.9082149292705877e-10);

  static constexpr T reciprocal_factorial(int n) { return n == 0 ? T(1) : reciprocal_factorial(n - 1) / T(n); }
  template <int... N>
  static inline __attribute__((always_inline)) V series(V r, std::integer_sequence<int, N...>) {
    V y = M::all(reciprocal_factorial(kTerms));
    ((y = y * r + reciprocal_factorial(kTerms - 1 - N)), ...);
    return y;
  }
  static inline __attribute__((always_inline)) V value(V x) {
    const V inside = x < kLeast ? M::all(kLeast) : x;
    const V shifted = inside * (T(1) / kLog) + kShift;
    const V whole = shifted - kShift;
    const V rest = (inside - whole * kHigh) - whole * kLow;
    const Integers power = (Integers)shifted - (Integers)M::all(kShift) + kBias;
    const V y = series(rest, std::make_integer_sequence<int, kTerms>{}) * (V)(power << kMantissa);
    return x < kLeast ? V{} : y;
  }
};

// What goes over the edges of each row with the heads side by side. R: the values of a vector register.
template <typename T, typename I, int R>
struct HeadRows {
  // f(row, h, n, begin, end): heads [h, h + n) of a row, whose edges have their numbers at begin, begin + heads, ... end
  template <typename F>
  static inline __attribute__((always_inline)) void over_rows(const EdgeBlock<I>& block, int64_t heads, const F& f) {
    const int64_t start = block.begin();
    for (int64_t row = block.first; row < block.last; ++row) {
      const int64_t begin = (block.indptr[row] - start) * heads, end = (block.indptr[row + 1] - start) * heads;
      in_chunks(heads, [&](int64_t h, auto n) { f(row, h, n, begin + h, end); });
    }
  }

  static void additive(const EdgeBlock<I>& block, int64_t heads, const T* rows, const T* columns, T slope, T* scores,
                       T* slopes) {
    const I* indices = block.indices + block.begin();
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      using V = typename M::V;
      const V own = M::load(rows + row * heads + h);
      const I* column = indices + begin / heads;
      for (int64_t t = begin; t < end; t += heads) {
        const V sum = own + M::load(columns + *column++ * heads + h);
        M::store(scores + t, sum > T(0) ? sum : sum * slope);
        if (slopes) M::store(slopes + t, sum > T(0) ? M::all(T(1)) : M::all(slope));
      }
    });
  }

  static void exponentials(const EdgeBlock<I>& block, int64_t heads, T* scores) {
    const int64_t count = block.count() * heads;
    for (int64_t t = 0; t < count; t += R)
      Vectors<T, R>::store(scores + t, Exponential<T, R>::value(Vectors<T, R>::load(scores + t)));
  }

  static void softmax(const EdgeBlock<I>& block, int64_t heads, T* scores, T* largest, T* sums) {
    constexpr T least = -std::numeric_limits<T>::infinity();
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      typename M::V most = M::all(least);
      for (int64_t t = begin; t < end; t += heads) {
        const typename M::V score = M::load(scores + t);
        most = score > most ? score : most;
      }
      most = most == least ? typename M::V{} : most;  // all scores are minus infinity
      for (int64_t t = begin; t < end; t += heads) M::store(scores + t, M::load(scores + t) - most);
      M::store(largest + row * heads + h, most);
    });
    exponentials(block, heads, scores);
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      typename M::V sum{};
      for (int64_t t = begin; t < end; t += heads) sum += M::load(scores + t);
      sum = sum == T(0) ? M::all(T(1)) : sum;
      const typename M::V inverse = T(1) / sum;
      for (int64_t t = begin; t < end; t += heads) M::store(scores + t, M::load(scores + t) * inverse);
      M::store(sums + row * heads + h, sum);
    });
  }

  static void weights(const EdgeBlock<I>& block, int64_t heads, T* scores, const T* largest, const T* sums) {
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      const typename M::V most = M::load(largest + row * heads + h);
      for (int64_t t = begin; t < end; t += heads) M::store(scores + t, M::load(scores + t) - most);
    });
    exponentials(block, heads, scores);
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      const typename M::V inverse = T(1) / M::load(sums + row * heads + h);
      for (int64_t t = begin; t < end; t += heads) M::store(scores + t, M::load(scores + t) * inverse);
    });
  }

  static void gradient(const EdgeBlock<I>& block, int64_t heads, const T* weights, T* grad) {
    over_rows(block, heads, [&](int64_t, int64_t, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      typename M::V mean{};
      for (int64_t t = begin; t < end; t += heads) mean += M::load(weights + t) * M::load(grad + t);
      for (int64_t t = begin; t < end; t += heads)
        M::store(grad + t, M::load(weights + t) * (M::load(grad + t) - mean));
    });
  }

  static void totals(const EdgeBlock<I>& block, int64_t heads, const T* values, T* out) {
    over_rows(block, heads, [&](int64_t row, int64_t h, auto n, int64_t begin, int64_t end) {
      using M = Vectors<T, n.value>;
      typename M::V sum{};
      for (int64_t t = begin; t < end; t += heads) sum += M::load(values + t);
      M::store(out + row * heads + h, sum);
    });
  }
};

// What gathers maps of nodes, in vectors of L.
template <typename T, typename I, int L, int R>
struct HeadMaps {
  using M = Vectors<T, L>;
  using V = typename M::V;

  // The sums of L successive vectors, a lane for each; the order of additions is the same in every lane.
  template <int S, typename Next>
  static inline __attribute__((always_inline)) V lane_sums(Next& next) {
    if constexpr (S == 0) {
      return next();
    } else {
      V a = lane_sums<S / 2>(next), b = lane_sums<S / 2>(next);
      M::template exchange<S>(a, b, std::make_index_sequence<L>{});
      return a + b;
    }
  }

  static void dots(const EdgeBlock<I>& block, int64_t heads, int64_t width, const T* rows, const T* columns, T factor,
                   T* scores) {
    const int64_t step = heads * width, count = block.count() * heads;
    const I *column = block.indices + block.begin(), *stop = block.indices + block.begin() + block.count();
    int64_t row = block.first, left = 0;
    const T *a = nullptr, *b = nullptr, *end = nullptr;
    const auto next = [&]() __attribute__((always_inline)) {
      if (b == end) {
        if (column == stop) return V{};
        for (; left == 0; ++row) left = block.indptr[row + 1] - block.indptr[row];
        --left;
        a = rows + (row - 1) * step;
        b = columns + *column++ * step;
        end = b + step;
      }
      V sum = M::load(a) * M::load(b);
      for (int64_t k = L; k < width; k += L) sum += M::load(a + k) * M::load(b + k);
      a += width;
      b += width;
      return sum;
    };
    for (int64_t t = 0; t < count; t += L) M::store(scores + t, lane_sums<L / 2>(next) * factor);
  }

  // N vectors of a row, with a weight for each or one for all
  template <int N, bool Each>
  static inline __attribute__((always_inline)) void row_sum(const I* column, int64_t degree, const T* weights,
                                                            int64_t heads, const T* map, int64_t step, T factor,
                                                            T* out) {
    V sum[N] = {};
    for (int64_t e = 0; e < degree; ++e, weights += heads) {
      const T* from = map + column[e] * step;
#pragma GCC unroll 8
      for (int k = 0; k < N; ++k) sum[k] += M::all(weights[Each ? k : 0]) * M::load(from + k * L);
    }
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) M::store(out + k * L, sum[k] * factor);
  }

  static void sums(const EdgeBlock<I>& block, int64_t heads, int64_t width, const T* weights, const T* map, T factor,
                   T* out) {
    const int64_t step = heads * width;
    const I* column = block.indices + block.begin();
    for (int64_t row = block.first; row < block.last; ++row) {
      const int64_t degree = block.indptr[row + 1] - block.indptr[row];
      T* own = out + row * step;
      if (width == L)
        in_chunks(heads, [&](int64_t h, auto n) {
          row_sum<n.value, true>(column, degree, weights + h, heads, map + h * L, step, factor, own + h * L);
        });
      else
        for (int64_t h = 0; h < heads; ++h)
          in_chunks(width / L, [&](int64_t k, auto n) {
            const int64_t at = h * width + k * L;
            row_sum<n.value, false>(column, degree, weights + h, heads, map + at, step, factor, own + at);
          });
      column += degree;
      weights += degree * heads;
    }
  }

  using Rows = HeadRows<T, I, R>;
  static constexpr AttentionKernels<T, I> table{
      L, dots, Rows::additive, Rows::softmax, Rows::weights, Rows::gradient, sums, Rows::totals};
};

}  // namespace

// Maps of few features in short vectors, so that little is padded.
template <typename T, typename I>
const AttentionKernels<T, I>& attention_kernels(int64_t width) {
  constexpr int R = kRegister / int(sizeof(T));
  if (width <= 4) return HeadMaps < T, I, R < 4 ? R : 4, R > ::table;
  if (width <= 8) return HeadMaps < T, I, R < 8 ? R : 8, R > ::table;
  return HeadMaps<T, I, R, R>::table;
}
template const AttentionKernels<float, int32_t>& attention_kernels(int64_t);
template const AttentionKernels<float, int64_t>& attention_kernels(int64_t);
template const AttentionKernels<double, int32_t>& attention_kernels(int64_t);
template const AttentionKernels<double, int64_t>& attention_kernels(int64_t);
