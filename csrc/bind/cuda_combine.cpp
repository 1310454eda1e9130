// Registers the CUDA implementations of the ops: checks, the device and stream of the tensors, calls of
// cuda/combine/combine_launch.h.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/combine/combine_launch.h"
#include "bind/leaves.h"
#include "runtime/runs.h"

namespace contnet_fast {
namespace {

struct Tolerances {
  at::ArrayRef<double> errors;
  double rtol, atol;
};

cuda::Scalar scalar_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return cuda::Scalar::f64;
    case at::kFloat: return cuda::Scalar::f32;
    case at::kBFloat16: return cuda::Scalar::bf16;
    case at::kHalf: return cuda::Scalar::f16;
    default: TORCH_CHECK(false, "rk_combine_cuda: dtype ", type, " is not one of float16, bfloat16, float32, float64");
  }
}

// Launches of up to kMostLeaves leaves of one pair of dtypes, and the tensors that their pointers are of.
class Launches {
 public:
  // With `rests`, which gets what rounding loses of each leaf, the sums begin with `cs`, if there are some.
  Launches(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients, const Tolerances* norm,
           at::TensorList cs = {}, std::vector<at::Tensor>* rests = nullptr)
      : norm_(norm), cs_(cs), rests_(rests) {
    for (size_t j = 0; j < coefficients.size(); ++j)
      if (coefficients[j] != 0.0 || (norm != nullptr && norm->errors[j] != 0.0)) used_.push_back(j);
    TORCH_CHECK(used_.size() <= cuda::kMostTerms, "rk_combine_cuda: ", used_.size(), " terms: kernels combine at most ",
                cuda::kMostTerms);
    for (size_t i = 0; i < ys.size(); ++i) add(ys[i], ks, coefficients, i, ys.size());
  }

  void run(double* partials, void* stream) {
    for (cuda::Combine& launch : launches_) {
      launch.partials = partials;
      launch.stream = stream;
      if (partials != nullptr) partials += cuda::combine_blocks(launch);
      cuda::rk_combine(launch);
    }
  }

  int64_t blocks() const {
    int64_t count = 0;
    for (const cuda::Combine& launch : launches_) count += cuda::combine_blocks(launch);
    return count;
  }

  std::vector<at::Tensor> results;

 private:
  void add(const at::Tensor& y, at::TensorList ks, at::ArrayRef<double> coefficients, size_t leaf, size_t leaves) {
    const cuda::Scalar state = scalar_of(y.scalar_type());
    const at::Tensor& out = results.emplace_back(at::empty_like(y));
    const at::ScalarType rest = sum_type(y.scalar_type());
    if (rests_ != nullptr) rests_->push_back(at::empty_like(out, out.options().dtype(rest)));
    if (y.numel() == 0) return;
    std::vector<at::Tensor> rates;
    for (size_t j : used_) rates.push_back(ks[j * leaves + leaf]);
    at::ScalarType type = rate_type(y, rates);
    if (state != cuda::Scalar::f32 && type != y.scalar_type()) type = at::kFloat;  // of 16-bit pairs, equal ones alone
    cuda::Combine& launch = open(state, scalar_of(type), coefficients);
    const int place = launch.leaves++;
    launch.y[place] = held_.emplace_back(in_storage_order(y, out, y.scalar_type())).const_data_ptr();
    launch.out[place] = out.mutable_data_ptr();
    launch.size[place] = y.numel();
    if (rests_ != nullptr) launch.after[place] = rests_->back().mutable_data_ptr();
    if (!cs_.empty())
      launch.before[place] = held_.emplace_back(in_storage_order(cs_[leaf], out, rest)).const_data_ptr();
    for (size_t j = 0; j < rates.size(); ++j)
      launch.k[place][j] = held_.emplace_back(in_storage_order(rates[j], out, type)).const_data_ptr();
  }

  // a launch of these dtypes with room for a leaf
  cuda::Combine& open(cuda::Scalar state, cuda::Scalar rate, at::ArrayRef<double> coefficients) {
    for (cuda::Combine& launch : launches_)
      if (launch.state == state && launch.rate == rate && launch.leaves < cuda::kMostLeaves) return launch;
    cuda::Combine& launch = launches_.emplace_back();
    launch.state = state;
    launch.rate = rate;
    launch.terms = static_cast<int32_t>(used_.size());
    for (size_t j = 0; j < used_.size(); ++j) {
      launch.coefficient[j] = coefficients[used_[j]];
      launch.error[j] = norm_ == nullptr ? 0.0 : norm_->errors[used_[j]];
    }
    if (norm_ != nullptr) {
      launch.rtol = norm_->rtol;
      launch.atol = norm_->atol;
    }
    return launch;
  }

  const Tolerances* norm_;
  at::TensorList cs_;
  std::vector<at::Tensor>* rests_;
  std::vector<size_t> used_;  // terms that add to a sum
  std::vector<cuda::Combine> launches_;
  std::vector<at::Tensor> held_;
};

std::vector<at::Tensor> rk_combine(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients) {
  check_leaves("rk_combine_cuda", ys, ks, coefficients.size());
  const c10::cuda::CUDAGuard guard(ys[0].device());
  Launches launches(ys, ks, coefficients, nullptr);
  const int64_t launched = cuda::launch_count();
  launches.run(nullptr, c10::cuda::getCurrentCUDAStream().stream());
  record("rk_combine", "cuda", "accumulate", static_cast<int>(cuda::launch_count() - launched));
  return launches.results;
}

std::tuple<std::vector<at::Tensor>, at::Tensor> rk_combine_error(at::TensorList ys, at::TensorList ks,
                                                                 at::ArrayRef<double> coefficients,
                                                                 at::ArrayRef<double> errors, double rtol,
                                                                 double atol) {
  check_leaves("rk_combine_error_cuda", ys, ks, coefficients.size());
  TORCH_CHECK(errors.size() == coefficients.size(), "rk_combine_error_cuda: ", errors.size(),
              " error coefficients for ", coefficients.size(), " coefficients");
  const c10::cuda::CUDAGuard guard(ys[0].device());
  const Tolerances norm{errors, rtol, atol};
  Launches launches(ys, ks, coefficients, &norm);
  int64_t elements = 0;
  bool wide = false;
  for (const at::Tensor& y : ys) {
    elements += y.numel();
    wide = wide || y.scalar_type() == at::kDouble;
  }
  const at::Tensor partials = at::empty({launches.blocks()}, ys[0].options().dtype(at::kDouble));
  const at::Tensor result = at::empty({}, ys[0].options().dtype(wide ? at::kDouble : at::kFloat));
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
  const int64_t launched = cuda::launch_count();
  launches.run(partials.mutable_data_ptr<double>(), stream);
  cuda::error_norm(partials.const_data_ptr<double>(), partials.numel(), std::max<int64_t>(elements, 1),
                   result.mutable_data_ptr(), wide ? cuda::Scalar::f64 : cuda::Scalar::f32, stream);
  record("rk_combine_error", "cuda", "accumulate", static_cast<int>(cuda::launch_count() - launched));
  return {launches.results, result};
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>> rk_combine_compensated(at::TensorList ys,
                                                                                    at::TensorList cs,
                                                                                    at::TensorList ks,
                                                                                    at::ArrayRef<double> coefficients) {
  check_leaves("rk_combine_compensated_cuda", ys, ks, coefficients.size());
  check_compensations("rk_combine_compensated_cuda", ys, cs);
  const c10::cuda::CUDAGuard guard(ys[0].device());
  std::vector<at::Tensor> rests;
  Launches launches(ys, ks, coefficients, nullptr, cs, &rests);
  const int64_t launched = cuda::launch_count();
  launches.run(nullptr, c10::cuda::getCurrentCUDAStream().stream());
  record("rk_combine_compensated", "cuda", "accumulate", static_cast<int>(cuda::launch_count() - launched));
  return {launches.results, std::move(rests)};
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CUDA, m) {
  m.impl("rk_combine_cuda", TORCH_FN(contnet_fast::rk_combine));
  m.impl("rk_combine_error_cuda", TORCH_FN(contnet_fast::rk_combine_error));
  m.impl("rk_combine_compensated_cuda", TORCH_FN(contnet_fast::rk_combine_compensated));
}
