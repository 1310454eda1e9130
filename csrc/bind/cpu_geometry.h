// How the convolutions of images are laid out, by the products that are asked for.
#pragma once

#include <ATen/ATen.h>

#include "bind/schema_arguments.h"
#include "cpu/conv/conv_solve.h"

namespace contnet_fast {

inline Geometry choose_geometry(const char* op, const at::Tensor& x, Products products) {
  const int height = x.size(2), width = x.size(3), channels = x.size(1);
  if (products == Products::sums) return geometry(height, width, channels);
  TORCH_CHECK(x.scalar_type() != at::kDouble, op, ": products in ", word_of(products, kProducts),
              " of a state in float64");
  if (products == Products::bfloat16) return direct_geometry(height, width, channels);
  return coarse_geometry(x.size(0), height, width, channels);
}

// A tensor [batch, channels, height, width], or grid point `step` of a trajectory of such.
template <typename T, typename P>
ImageBatch<T> images(const at::Tensor& t, P* data, int64_t step = -1) {
  const auto s = t.strides().slice(step < 0 ? 0 : 1);
  return {data + (step < 0 ? 0 : step * t.stride(0)), s[0], s[1], s[2], s[3]};
}

}  // namespace contnet_fast
