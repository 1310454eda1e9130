// The one body of compensate_block, included after rk_combine_block.h, whose sums it uses, in the same namespaces.

namespace {

// In which compensated sums of a state run, and what they lose is kept.
template <typename Y>
struct Compensated {
  using sum = float;
  using rest = float;
};
template <>
struct Compensated<float> {
  using sum = double;
  using rest = float;
};
template <>
struct Compensated<double> {
  using sum = double;
  using rest = double;
};

// a + b - total, where total is a + b rounded
inline double lost(double a, double b, double total) {
  const double rounded = total - a;
  return (a - (total - rounded)) + (b - rounded);
}

template <typename T>
T finite_or_zero(T x) {
  return x - x == T(0) ? x : T(0);
}

// The sum in the wider type, rounded, and the rest. `out` is read back from memory in a loop of its own: g++ 12 takes
// double -> float -> double in one loop of AVX-512 for no change at all.
template <typename Y, typename A, typename C>
void round_off(const Y* y, const C* before, A* sum, Y* out, C* after, int64_t count) {
  if (before == nullptr) {
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<A>(y[i]) + sum[i];
  } else {
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<A>(y[i]) + (sum[i] + static_cast<A>(before[i]));
  }
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<Y>(sum[i]);
  for (int64_t i = 0; i < count; ++i) after[i] = static_cast<C>(finite_or_zero(sum[i] - static_cast<A>(out[i])));
}

// Nothing is wider: two exact sums.
void round_off(const double* y, const double* before, double* sum, double* out, double* after, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double c = before == nullptr ? 0.0 : before[i];
    const double more = sum[i] + c, total = y[i] + more;
    after[i] = finite_or_zero(lost(y[i], more, total) + lost(sum[i], c, more));
    out[i] = total;
  }
}

template <typename Y, typename K>
void compensate(const Combination& p, const Compensation& kept, int64_t begin, int64_t count) {
  using A = typename Compensated<Y>::sum;
  using C = typename Compensated<Y>::rest;
  if (count <= 0) return;
  alignas(64) A sum[kBlock];
  add_all<K, A>(nullptr, p.ks, p.coefficients, p.terms, sum, begin, count);
  const C* before = kept.before == nullptr ? nullptr : static_cast<const C*>(kept.before) + begin;
  round_off(static_cast<const Y*>(p.y) + begin, before, sum, static_cast<Y*>(p.out) + begin,
            static_cast<C*>(kept.after) + begin, count);
}

template <typename Y>
void compensate_rates(const Combination& p, const Compensation& kept, int64_t begin, int64_t count) {
  switch (p.rate) {
    case Scalar::bf16: return compensate<Y, c10::BFloat16>(p, kept, begin, count);
    case Scalar::f16: return compensate<Y, c10::Half>(p, kept, begin, count);
    default: return compensate<Y, float>(p, kept, begin, count);
  }
}

}  // namespace

void compensate_block(const Combination& p, const Compensation& kept, int64_t begin, int64_t count) {
  switch (p.state) {
    case Scalar::f64: return compensate<double, double>(p, kept, begin, count);
    case Scalar::bf16: return compensate_rates<c10::BFloat16>(p, kept, begin, count);
    case Scalar::f16: return compensate_rates<c10::Half>(p, kept, begin, count);
    default: return compensate_rates<float>(p, kept, begin, count);
  }
}
