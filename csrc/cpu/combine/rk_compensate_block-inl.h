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

constexpr int kChunk = 64;   // scalars whose sums stay in the first cache
constexpr int kAhead = 256;  // scalars between those in work and those asked of memory: conversions would wait for it

// Of the eight streams of a step the caches foresee too few; past the end nothing happens.
template <typename T>
void ask_for(const T* p, bool write = false) {
  for (int i = 0; i < kChunk; i += 64 / static_cast<int>(sizeof(T)))
    write ? __builtin_prefetch(p + kAhead + i, 1) : __builtin_prefetch(p + kAhead + i, 0);
}

// The sum in the wider type, rounded, and the rest. `out` is read back from memory in a loop of its own: g++ 12 takes
// double -> float -> double in one loop of AVX-512 for no change at all.
template <typename Y, typename A, typename C>
void round_off(const Y* y, const C* before, const A* increment, Y* out, C* after, int count) {
  A total[kChunk];
  for (int i = 0; i < count; ++i)
    total[i] = static_cast<A>(y[i]) + (before == nullptr ? increment[i] : increment[i] + static_cast<A>(before[i]));
  for (int i = 0; i < count; ++i) out[i] = static_cast<Y>(total[i]);
  for (int i = 0; i < count; ++i) after[i] = static_cast<C>(total[i] - static_cast<A>(out[i]));
}

// Nothing is wider: two exact sums.
void round_off(const double* y, const double* before, const double* increment, double* out, double* after, int count) {
  for (int i = 0; i < count; ++i) {
    const double c = before == nullptr ? 0.0 : before[i];
    const double more = increment[i] + c, total = y[i] + more;
    after[i] = lost(y[i], more, total) + lost(increment[i], c, more);
    out[i] = total;
  }
}

// Zeros in place of what is not finite.
template <typename C>
void keep_finite(C* rests, int count) {
  int bad = 0;
  for (int i = 0; i < count; ++i) bad |= !(rests[i] - rests[i] == C(0));
  if (bad == 0) return;
  for (int i = 0; i < count; ++i) rests[i] = rests[i] - rests[i] == C(0) ? rests[i] : C(0);
}

template <typename Y, typename K>
void compensate(const Combination& p, const Compensation& kept, int64_t begin, int64_t count) {
  using A = typename Compensated<Y>::sum;
  using C = typename Compensated<Y>::rest;
  const K* ks[4];
  A c[4];
  int live = 0;
  for (int j = 0; j < p.terms; ++j) {
    if (p.coefficients[j] == 0.0) continue;
    if (live < 4) ks[live] = static_cast<const K*>(p.ks[j]), c[live] = static_cast<A>(p.coefficients[j]);
    ++live;
  }
  const A* none = nullptr;
  const bool has_before = kept.before != nullptr;
  A increment[kChunk];
  for (const int64_t end = begin + count; begin < end; begin += kChunk) {
    const Y* y = static_cast<const Y*>(p.y) + begin;
    const C* before = has_before ? static_cast<const C*>(kept.before) + begin : nullptr;
    Y* out = static_cast<Y*>(p.out) + begin;
    C* after = static_cast<C*>(kept.after) + begin;
    for (int j = 0; j < (live < 4 ? live : 4); ++j) ask_for(ks[j] + begin);
    ask_for(y), ask_for(out, true), ask_for(after, true);
    if (has_before) ask_for(before);
    const auto chunk = [&](int size) __attribute__((always_inline)) {
      switch (live) {
        case 1: add_terms<1, false, false>(ks, c, none, increment, begin, size); break;
        case 2: add_terms<2, false, false>(ks, c, none, increment, begin, size); break;
        case 3: add_terms<3, false, false>(ks, c, none, increment, begin, size); break;
        case 4: add_terms<4, false, false>(ks, c, none, increment, begin, size); break;
        default: add_all<K, A>(nullptr, p.ks, p.coefficients, p.terms, increment, begin, size);
      }
      round_off(y, before, increment, out, after, size);
      keep_finite(after, size);
    };
    end - begin >= kChunk ? chunk(kChunk)
                          : chunk(static_cast<int>(end - begin));  // loops of a constant length are shorter
  }
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
