// The one body of combine_block. Each rk_combine_<isa>.cpp includes it inside its own namespace, after choosing the
// instruction set; the loops are plain C++ for the compiler to vectorise. Included there after every other header.

namespace {

template <typename T>
struct Sum {
  using type = float;
};
template <>
struct Sum<double> {
  using type = double;
};

template <typename, typename>
struct Same {
  static constexpr bool value = false;
};
template <typename T>
struct Same<T, T> {
  static constexpr bool value = true;
};

// dst = before + sum_{j < T} c_j k_j + y: the terms in turn, then y. `before` is what dst holds (kGoOn) or nothing.
template <int T, bool kGoOn, bool kEnd, typename K, typename A>
void add_terms(const K* const* ks, const A* c, const A* y, A* dst, int64_t begin, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    A sum = kGoOn ? dst[i] : c[0] * static_cast<A>(ks[0][begin + i]);
    for (int j = kGoOn ? 0 : 1; j < T; ++j) sum += c[j] * static_cast<A>(ks[j][begin + i]);
    dst[i] = kEnd ? y[i] + sum : sum;
  }
}

template <int T, typename K, typename A>
void add_terms(const K* const* ks, const A* c, const A* y, A* dst, bool go_on, bool end, int64_t begin, int64_t count) {
  if (go_on && end) return add_terms<T, true, true>(ks, c, y, dst, begin, count);
  if (go_on) return add_terms<T, true, false>(ks, c, y, dst, begin, count);
  if (end) return add_terms<T, false, true>(ks, c, y, dst, begin, count);
  add_terms<T, false, false>(ks, c, y, dst, begin, count);
}

// dst = y + sum of all terms, y null: the sum alone. Four terms at a time, so that the running sum stays in registers
// for four of them.
template <typename K, typename A>
void add_all(const A* y, const void* const* ks, const double* coefficients, int terms, A* dst, int64_t begin,
             int64_t count) {
  const K* live[4];
  A c[4];
  int held = 0, left = 0;
  bool go_on = false;
  for (int j = 0; j < terms; ++j) left += coefficients[j] != 0.0;
  if (left == 0) {
    for (int64_t i = 0; i < count; ++i) dst[i] = y == nullptr ? A(0) : y[i];
    return;
  }
  for (int j = 0; j < terms; ++j) {
    if (coefficients[j] == 0.0) continue;
    live[held] = static_cast<const K*>(ks[j]);
    c[held++] = static_cast<A>(coefficients[j]);
    const bool end = --left == 0;
    if (held < 4 && !end) continue;
    const bool add_y = end && y != nullptr;
    switch (held) {
      case 1: add_terms<1>(live, c, y, dst, go_on, add_y, begin, count); break;
      case 2: add_terms<2>(live, c, y, dst, go_on, add_y, begin, count); break;
      case 3: add_terms<3>(live, c, y, dst, go_on, add_y, begin, count); break;
      default: add_terms<4>(live, c, y, dst, go_on, add_y, begin, count);
    }
    go_on = true;
    held = 0;
  }
}

inline float magnitude(float x) { return __builtin_fabsf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }

// sum of squares of e / (atol + rtol max(|y|, |y1|)); `e` is overwritten
template <typename A>
double weighted_squares(A* e, const A* y, const A* y1, const ErrorNorm& norm, int64_t count) {
  const A rtol = static_cast<A>(norm.rtol), atol = static_cast<A>(norm.atol);
  if (norm.is_complex) {
    double total = 0.0;
    for (int64_t i = 0; i < count; i += 2) {
      const double square = static_cast<double>(e[i]) * e[i] + static_cast<double>(e[i + 1]) * e[i + 1];
      const double before = static_cast<double>(y[i]) * y[i] + static_cast<double>(y[i + 1]) * y[i + 1];
      const double after = static_cast<double>(y1[i]) * y1[i] + static_cast<double>(y1[i + 1]) * y1[i + 1];
      const double scale = norm.atol + norm.rtol * __builtin_sqrt(before > after ? before : after);
      total += square / (scale * scale);
    }
    return total;
  }
  for (int64_t i = 0; i < count; ++i) {
    const A before = magnitude(y[i]), after = magnitude(y1[i]);
    e[i] /= atol + rtol * (before > after ? before : after);  // a NaN state makes y1 NaN, which this picks
  }
  double lanes[8] = {};  // a fixed order of summation, eight wide
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += static_cast<double>(e[i + l]) * e[i + l];
  for (int l = 0; i < count; ++i, ++l) lanes[l] += static_cast<double>(e[i]) * e[i];
  double total = 0.0;
  for (double lane : lanes) total += lane;
  return total;
}

// `start` and `sum` hold the state in the type of the sums; where that is the type of the state, they are it
template <typename A, typename Y>
const A* load(const Y* y, A* start, int64_t count) {
  for (int64_t i = 0; i < count; ++i) start[i] = static_cast<A>(y[i]);
  return start;
}
template <typename A>
const A* load(const A* y, A*, int64_t) {
  return y;
}

template <typename Y, typename K>
double combine(const Combination& p, const ErrorNorm* norm, int64_t begin, int64_t count) {
  using A = typename Sum<Y>::type;
  constexpr bool same = Same<Y, A>::value;
  if (count <= 0) return 0.0;  // and g++ sees that the buffers are written
  alignas(64) A buffers[same ? 1 : 2 * kBlock];
  Y* out = static_cast<Y*>(p.out) + begin;
  const A* start = load<A>(static_cast<const Y*>(p.y) + begin, buffers, count);
  if constexpr (same) {
    add_all<K, A>(start, p.ks, p.coefficients, p.terms, out, begin, count);
  } else {
    A* sum = buffers + kBlock;
    add_all<K, A>(start, p.ks, p.coefficients, p.terms, sum, begin, count);
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Y>(sum[i]);
  }
  if (norm == nullptr) return 0.0;
  alignas(64) A error[kBlock];
  add_all<K, A>(nullptr, p.ks, norm->error, p.terms, error, begin, count);
  const A* end = load<A>(static_cast<const Y*>(out), same ? buffers : buffers + kBlock, count);  // y1 as it is stored
  return weighted_squares(error, start, end, *norm, count);
}

template <typename Y>
double combine_rates(const Combination& p, const ErrorNorm* norm, int64_t begin, int64_t count) {
  switch (p.rate) {
    case Scalar::bf16: return combine<Y, c10::BFloat16>(p, norm, begin, count);
    case Scalar::f16: return combine<Y, c10::Half>(p, norm, begin, count);
    default: return combine<Y, float>(p, norm, begin, count);
  }
}

}  // namespace

double combine_block(const Combination& p, const ErrorNorm* norm, int64_t begin, int64_t count) {
  switch (p.state) {
    case Scalar::f64: return combine<double, double>(p, norm, begin, count);
    case Scalar::bf16: return combine_rates<c10::BFloat16>(p, norm, begin, count);
    case Scalar::f16: return combine_rates<c10::Half>(p, norm, begin, count);
    default: return combine_rates<float>(p, norm, begin, count);
  }
}
