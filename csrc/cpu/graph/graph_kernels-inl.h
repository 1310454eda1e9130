// The bodies of graph_kernels.h for slices of W columns, in vectors of L. Part of what each instances/graph_<isa>.cpp
// compiles for its instruction set; included there after every other header.

namespace {

template <typename T, typename I, int W, int L>
struct Slice {
  static constexpr int N = W / L;  // vectors of a row
  using M = Vectors<T, L>;
  using V = typename M::V;
  struct Row {
    V v[N];
  };

  static inline __attribute__((always_inline)) Row load(const T* map, int64_t i) {
    Row r;
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) r.v[k] = M::load(map + i * W + k * L);
    return r;
  }
  static inline __attribute__((always_inline)) void store(T* map, int64_t i, const Row& r) {
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) M::store(map + i * W + k * L, r.v[k]);
  }
  static inline __attribute__((always_inline)) void add(Row& r, T factor, const Row& other) {
    const V f = M::all(factor);
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) r.v[k] += f * other.v[k];
  }
  static inline __attribute__((always_inline)) Row times(T factor, const Row& other) {
    Row r;
    const V f = M::all(factor);
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) r.v[k] = f * other.v[k];
    return r;
  }
  static inline __attribute__((always_inline)) void add(Row& r, const Row& factors, const Row& other) {
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) r.v[k] += factors.v[k] * other.v[k];
  }
  static inline __attribute__((always_inline)) T dot(const Row& a, const Row& b) {
    V sum = a.v[0] * b.v[0];
#pragma GCC unroll 8
    for (int k = 1; k < N; ++k) sum += a.v[k] * b.v[k];
    return M::total(sum);
  }
  // adds the products of two rows to a row of a map
  static inline __attribute__((always_inline)) void add_products(T* map, int64_t i, const Row& a, const Row& b) {
    Row sum = load(map, i);
    add(sum, a, b);
    store(map, i, sum);
  }
  static inline __attribute__((always_inline)) void add(Row& r, const MapSum<T>& sum, int64_t i) {
    for (int j = 0; j < sum.count; ++j) add(r, sum.factors[j], load(sum.maps[j], i));
  }

  // the row at place p of a product with a map
  static inline __attribute__((always_inline)) Row product(const SparseRows<T, I>& a, const T* map, int64_t p) {
    Row sum{};
    const I stop = a.indptr[p + 1];
    for (I e = a.indptr[p]; e < stop; ++e) add(sum, a.values[e], load(map, a.indices[e]));
    return sum;
  }

  // Calls f(place). Rows of `soon` are on their way to the second cache meanwhile, as many as there are places.
  template <typename F>
  static inline __attribute__((always_inline)) void over_places(const T* soon, int64_t first, int64_t last,
                                                                const F& f) {
    constexpr int64_t kTogether = 16;
    for (int64_t p = first; p < last;) {
      const int64_t end = p + kTogether < last ? p + kTogether : last;
      for (int64_t i = p; soon && i < end; ++i) __builtin_prefetch(soon + i * W, 0, 2);
      for (; p < end; ++p) f(p);
    }
  }

  static void evaluate(const Evaluation<T, I>& c, int64_t first, int64_t last) {
    c.rate_grad ? evaluate<true>(c, first, last) : evaluate<false>(c, first, last);
  }
  // the copies of the arguments are no memory that a store could change
  template <bool kGradient>
  static void evaluate(const Evaluation<T, I>& given, int64_t first, int64_t last) {
    const Evaluation<T, I> c = given;
    const Row columns = c.columns ? load(c.columns, 0) : Row{};
    over_places(c.soon, first, last, [&](int64_t p) __attribute__((always_inline)) {
      const Row product_row = product(c.graph, c.input, p);
      const int64_t i = c.graph.row[p];
      if (c.product) store(c.product, i, product_row);
      Row k = times(c.scale[i], product_row);
      const Row input = load(c.input, i);
      add(k, c.diagonal[i], input);
      if (c.columns) add(k, columns, input);
      if (c.source) add(k, T(1), load(c.source, i));
      if (c.rate) store(c.rate, i, k);
      if constexpr (kGradient) {
        const Row grad = times(c.rate_factor, load(c.rate_grad, i));
        if (c.scale_products) add_products(c.scale_products, i, grad, product_row);
        if (c.diagonal_products) add_products(c.diagonal_products, i, grad, input);
      }
      if (c.total) {
        Row total = load(c.total_base, i);
        add(total, c.total_own, k);
        store(c.total, i, total);
      }
      if (!c.next) return;
      Row next = load(c.base, i);
      add(next, c.earlier, i);
      add(next, c.own, k);
      store(c.next, i, next);
    });
  }

  static void adjoint(const Adjoint<T, I>& given, int64_t first, int64_t last) {
    const Adjoint<T, I> c = given;
    const Row columns = c.columns ? load(c.columns, 0) : Row{};
    const RateAdjoint<T>& to = c.to;
    over_places(c.soon, first, last, [&](int64_t p) __attribute__((always_inline)) {
      const int64_t i = c.transpose.row[p];
      Row next = times(c.base_factor, load(c.base, i)), grad{};
      add(next, c.later, i);
      if (c.rate_grad) {
        Row by_input = times(c.factor, product(c.transpose, c.rate_grad, p));
        grad = times(c.rate_factor, load(c.rate_grad, i));
        add(by_input, c.diagonal[i], grad);
        if (c.columns) add(by_input, columns, grad);
        if (c.input_grad) store(c.input_grad, i, by_input);
        if (c.total) {
          Row total = load(c.total_base, i);
          add(total, T(1), by_input);
          store(c.total, i, total);
        }
        add(next, c.own, by_input);
      }
      if (c.source_grad) {
        add(grad, T(1), load(c.source_grad, i));
        if (!c.next) add(grad, T(1), next);
        store(c.source_grad, i, grad);
      }
      if (c.next) return store(c.next, i, next);
      store(to.rate_grad, i, next);
      if (!to.scale_products && !to.diagonal_products) return;
      const Row scaled = times(to.factor, next);
      if (to.scale_products) add_products(to.scale_products, i, scaled, load(to.product, i));
      if (to.diagonal_products) add_products(to.diagonal_products, i, scaled, load(to.input, i));
    });
  }

  static void edges(const EdgeGradient<T, I>& given, int64_t first, int64_t last) {
    const EdgeGradient<T, I> c = given;
    for (int64_t i = first; i < last; ++i) {
      const Row target = times(c.rate_factor * c.scale[i], load(c.rate_grad, i));
      for (I e = c.indptr[i]; e < c.indptr[i + 1]; ++e) c.grad[e] += dot(target, load(c.input, c.indices[e]));
    }
  }

  static void columns(const T* map, int64_t nodes, T* sums) {
    for (int64_t i = 0; i < nodes; ++i) {
      const Row row = load(map, i);
      V sum = row.v[0];
#pragma GCC unroll 8
      for (int k = 1; k < N; ++k) sum += row.v[k];
      sums[i] += M::total(sum);
    }
  }

  // sums of a block of nodes stay in registers
  static void inner(const T* map, const T* other, int64_t nodes, T* sums) {
    constexpr int64_t kBlock = 256;
    constexpr int R = 8 / N < W ? 8 / N : W;  // columns of the first map that are taken together
    static_assert(N <= 8 && W % R == 0);
    for (int64_t begin = 0; begin < nodes; begin += kBlock) {
      const int64_t end = begin + kBlock < nodes ? begin + kBlock : nodes;
      for (int first = 0; first < W; first += R) {
        Row sum[R] = {};
        for (int64_t i = begin; i < end; ++i) {
          const Row row = load(other, i);
#pragma GCC unroll 8
          for (int k = 0; k < R; ++k) add(sum[k], map[i * W + first + k], row);
        }
        for (int k = 0; k < R; ++k) {
          add(sum[k], T(1), load(sums, first + k));
          store(sums, first + k, sum[k]);
        }
      }
    }
  }

  static constexpr GraphKernels<T, I> table{W, evaluate, adjoint, edges, columns, inner};
};

// L: the values of a vector register
template <typename T, typename I, int L>
const GraphKernels<T, I>& choose_slice(int width) {
  constexpr auto least = [](int w) { return w < L ? w : L; };
  if (width == 4) return Slice<T, I, 4, least(4)>::table;
  if (width == 8) return Slice<T, I, 8, least(8)>::table;
  return Slice<T, I, 16, least(16)>::table;
}

}  // namespace

template <typename T, typename I>
const GraphKernels<T, I>& graph_kernels(int width) {
  return choose_slice<T, I, kRegister / int(sizeof(T))>(width);
}
template const GraphKernels<float, int32_t>& graph_kernels(int);
template const GraphKernels<float, int64_t>& graph_kernels(int);
template const GraphKernels<double, int32_t>& graph_kernels(int);
template const GraphKernels<double, int64_t>& graph_kernels(int);
