// Ranges of rows for threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace contnet_fast {

// Ranges of rows with about as many nonzeros each. Every row is the work of one call, so that the number of ranges
// changes no bit of a result.
class RowRanges {
 public:
  template <typename I>
  RowRanges(const I* indptr, int64_t n, int64_t width) {
    const auto before = [&](int64_t i) { return int64_t(indptr[i]) + 4 * i; };  // work of the rows below i
    const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    const int64_t count = std::max<int64_t>(1, std::min(threads, before(n) * width / kLeastWork));
    starts_.push_back(0);
    for (int64_t r = 1; r < count; ++r) {
      int64_t low = starts_.back(), high = n;
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (before(middle) < before(n) * r / count)
          low = middle + 1;
        else
          high = middle;
      }
      starts_.push_back(low);
    }
    starts_.push_back(n);
  }

  bool single() const { return starts_.size() == 2; }

  template <typename F>
  void run(const F& f) const {
    const int64_t count = static_cast<int64_t>(starts_.size()) - 1;
    if (count == 1) return f(starts_[0], starts_[1]);
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) f(starts_[r], starts_[r + 1]);
    });
  }

 private:
  static constexpr int64_t kLeastWork = 200'000;  // values gathered, below which waking a thread costs more
  std::vector<int64_t> starts_;
};

}  // namespace contnet_fast
