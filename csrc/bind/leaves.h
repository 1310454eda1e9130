// Leaves of a state as the kernels of stage combinations take them, on any device.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace contnet_fast {

inline void check_leaves(const char* op, at::TensorList ys, at::TensorList ks, size_t terms) {
  TORCH_CHECK(ks.size() == ys.size() * terms, op, ": ", terms, " coefficients for ", ks.size(), " ks and ", ys.size(),
              " ys");
  for (size_t i = 0; i < ks.size(); ++i) {
    const at::Tensor &k = ks[i], &y = ys[i % ys.size()];
    TORCH_CHECK(k.sizes() == y.sizes(), op, ": a rate of shape ", k.sizes(), " for a state of ", y.sizes());
    TORCH_CHECK(k.device() == y.device() && y.device() == ys[0].device(), op, ": tensors on ", ys[0].device(), ", ",
                y.device(), " and ", k.device());
  }
}

// What rounding lost of each of `ys`, or nothing at all.
inline void check_compensations(const char* op, at::TensorList ys, at::TensorList cs) {
  TORCH_CHECK(cs.empty() || cs.size() == ys.size(), op, ": ", cs.size(), " cs for ", ys.size(), " ys");
  for (size_t i = 0; i < cs.size(); ++i)
    TORCH_CHECK(cs[i].sizes() == ys[i].sizes() && cs[i].device() == ys[i].device(), op, ": a c of shape ",
                cs[i].sizes(), " on ", cs[i].device(), " for a state of ", ys[i].sizes(), " on ", ys[i].device());
}

// The dtype of sums: float for 16-bit floats, else that of the state.
inline at::ScalarType sum_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

// The one dtype in which the rates of `y` are read: their own where that is a 16-bit float or float32 beside a float
// sum, else float32, or that of `y` where it is wider.
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
