// How the convolutions of images are laid out, by the products that are asked for.
#pragma once

#include <ATen/ATen.h>

#include "bind/schema_arguments.h"
#include "cpu/conv/conv_kernels.h"

namespace contnet_fast {

inline Geometry choose_geometry(const char* op, const at::Tensor& x, Products products) {
  const int height = x.size(2), width = x.size(3), channels = x.size(1);
  if (products == Products::sums) return geometry(height, width, channels);
  TORCH_CHECK(x.scalar_type() != at::kDouble, op, ": products in ", word_of(products, kProducts),
              " of a state in float64");
  if (products == Products::bfloat16) return direct_geometry(height, width, channels);
  return coarse_geometry(x.size(0), height, width, channels);
}

}  // namespace contnet_fast
