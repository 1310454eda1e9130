// Tensors as the kernels of graphs read them.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "cuda/lib/types.h"

namespace contnet_fast::graphs {

inline cuda::Scalar scalar_of(const char* op, at::ScalarType type) {
  switch (type) {
    case at::kDouble: return cuda::Scalar::f64;
    case at::kFloat: return cuda::Scalar::f32;
    case at::kBFloat16: return cuda::Scalar::bf16;
    case at::kHalf: return cuda::Scalar::f16;
    default: TORCH_CHECK(false, op, ": a tensor of dtype ", type, ": accepted are float16, bfloat16, float32, float64");
  }
}

// dense, where vectors of 16 bytes can be read
inline at::Tensor dense(const at::Tensor& t, at::ScalarType type) {
  const at::Tensor result = t.to(type).resolve_neg().contiguous();
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone();
}

inline const void* data_or_null(const at::Tensor& t) {
  return t.defined() && t.numel() > 0 ? t.const_data_ptr() : nullptr;
}
inline void* mutable_or_null(const at::Tensor& t) {
  return t.defined() && t.numel() > 0 ? t.mutable_data_ptr() : nullptr;
}

}  // namespace contnet_fast::graphs
