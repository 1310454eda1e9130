// The derivative of rk_combine_cpu in C++: one node of autograd for any number of terms, without Python.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "bind/leaves.h"
#include "cpu/combine/rk_combine.h"

namespace contnet_fast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The op below autograd.
variable_list forward(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients) {
  using Combine = variable_list(at::TensorList, at::TensorList, at::ArrayRef<double>);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("contnet_fast::rk_combine_cpu", "").typed<Combine>();
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(ys, ks, coefficients);
}

// All `coefficients` times g where g is read once for all of them; outs are laid out as g.
template <typename T>
void scale(const at::Tensor& g, const std::vector<double>& coefficients, const variable_list& outs) {
  const T* from = g.const_data_ptr<T>();
  std::vector<T*> to;
  for (const at::Tensor& out : outs) to.push_back(out.mutable_data_ptr<T>());
  at::parallel_for(0, g.numel(), 1 << 15, [&](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBlock)
      for (size_t j = 0; j < to.size(); ++j) {
        const T c = static_cast<T>(coefficients[j]);
        for (int64_t i = begin; i < std::min(last, begin + kBlock); ++i) to[j][i] = c * from[i];
      }
  });
}

// c_j g for each coefficient, in the dtypes of the rates; by ops that can be differentiated again where a graph is on.
variable_list scaled(const at::Tensor& g, const std::vector<double>& coefficients,
                     const std::vector<at::ScalarType>& types) {
  const at::ScalarType type = g.scalar_type();
  const bool same = std::all_of(types.begin(), types.end(), [&](at::ScalarType t) { return t == type; });
  const bool plain = !at::GradMode::is_enabled() && same && g.is_non_overlapping_and_dense() &&
                     (type == at::kFloat || type == at::kDouble) && g.layout() == at::kStrided && !g.is_neg() &&
                     !at::isTensorSubclassLike(g);
  variable_list outs;
  for (size_t j = 0; j < types.size(); ++j)
    outs.push_back(plain ? at::empty_like(g) : g.to(sum_type(type)).mul(coefficients[j]).to(types[j]));
  if (plain) type == at::kFloat ? scale<float>(g, coefficients, outs) : scale<double>(g, coefficients, outs);
  return outs;
}

// The sum is linear: dy = g and dk_j = c_j g.
struct RkCombine : torch::autograd::Function<RkCombine> {
  static variable_list forward(AutogradContext* ctx, at::TensorList ys, at::TensorList ks,
                               at::ArrayRef<double> coefficients) {
    ctx->set_materialize_grads(false);  // zeros would meet infinite slopes of what nobody asked about
    std::vector<int64_t> types;
    for (const at::Tensor& k : ks) types.push_back(static_cast<int64_t>(k.scalar_type()));
    ctx->saved_data["coefficients"] = coefficients.vec();
    ctx->saved_data["types"] = std::move(types);
    return contnet_fast::forward(ys, ks, coefficients);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const std::vector<double> coefficients = ctx->saved_data["coefficients"].toDoubleVector();
    const std::vector<int64_t> types = ctx->saved_data["types"].toIntVector();
    const size_t leaves = grads.size();
    variable_list found = grads;
    found.resize(leaves + types.size() + 1);  // none for the coefficients
    for (size_t i = 0; i < leaves; ++i) {
      std::vector<size_t> wanted;
      std::vector<double> by;
      std::vector<at::ScalarType> as;
      for (size_t j = 0, n = i; n < types.size(); ++j, n += leaves)
        if (grads[i].defined() && coefficients[j] != 0.0 && ctx->needs_input_grad(leaves + n)) {
          wanted.push_back(leaves + n);
          by.push_back(coefficients[j]);
          as.push_back(static_cast<at::ScalarType>(types[n]));
        }
      variable_list outs = wanted.empty() ? variable_list() : scaled(grads[i], by, as);
      for (size_t j = 0; j < outs.size(); ++j) found[wanted[j]] = std::move(outs[j]);
    }
    return found;
  }
};

template <typename Test>
bool any(at::TensorList a, at::TensorList b, Test test) {
  return std::any_of(a.begin(), a.end(), test) || std::any_of(b.begin(), b.end(), test);
}

variable_list rk_combine(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients) {
  TORCH_CHECK_NOT_IMPLEMENTED(!any(ys, ks, [](const at::Tensor& x) { return x._fw_grad(0).defined(); }),
                              "rk_combine_cpu: got a tensor with a tangent, which it does not differentiate");
  if (at::GradMode::is_enabled() && any(ys, ks, [](const at::Tensor& x) { return x.requires_grad(); }))
    return RkCombine::apply(ys, ks, coefficients);
  return forward(ys, ks, coefficients);
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, Autograd, m) { m.impl("rk_combine_cpu", TORCH_FN(contnet_fast::rk_combine)); }
