// Leaves of a state as the kernels of stage combinations take them, on any device.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace contnet_fast {

inline void check_leaves(const char* op, at::TensorList ys, at::TensorList ks, size_t terms) {
  TORCH_CHECK(ks.size() == ys.size() * terms, op, ": ", terms, " coefficients for ", ks.size(), " ks and ", ys.size(), " ys");
  for (size_t i = 0; i < ks.size(); ++i) {
    const at::Tensor &k = ks[i], &y = ys[i % ys.size()];
    TORCH_CHECK(k.sizes() == y.sizes(), op, ": a rate of shape ", k.sizes(), " for a state of ", y.sizes());
    TORCH_CHECK(k.device() == y.device() && y.device() == ys[0].device(), op, ": tensors on ", ys[0].device(), ", ",
                y.device(), " and ", k.device());
  }
}

// The one dtype in which the rates of `y` are read: their own where that is a 16-bit float or float32 beside a float sum,
// else float32, or that of `y` where it is wider.
inline at::ScalarType rate_type(const at::Tensor& y, const std::vector<at::Tensor>& rates) {
  if (rates.empty() || y.scalar_type() == at::kDouble || y.is_complex()) return y.scalar_type();
  const at::ScalarType type = rates.front().scalar_type();
  if (type != at::kBFloat16 && type != at::kHalf) return at::kFloat;
  for (const at::Tensor& rate : rates)
    if (rate.scalar_type() != type) return at::kFloat;
  return type;
}

// `t` with the strides of `like`, in `type`: itself or a copy.
inline at::Tensor in_storage_order(const at::Tensor& t, const at::Tensor& like, at::ScalarType type) {
  const bool plain = !t.is_conj() && !t.is_neg();
  if (plain && t.scalar_type() == type && t.strides() == like.strides() && t.is_non_overlapping_and_dense()) return t;
  return at::empty_like(like, like.options().dtype(type)).copy_(t);
}

}  // namespace contnet_fast
