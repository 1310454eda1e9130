// Whose weights a call has, so that what is made from them can be used again.
#pragma once

#include <ATen/ATen.h>

#include <memory>

#include "cpu/conv/conv_solve.h"

namespace contnet_fast {

struct StorageOwner : WeightOwner {
  explicit StorageOwner(const at::Tensor& tensor) : weak(tensor.storage().getWeakStorageImpl()) {}
  const void* storage() const override { return weak._unsafe_get_target(); }
  bool gone() const override { return weak.expired(); }
  c10::weak_intrusive_ptr<c10::StorageImpl> weak;
};

// Of a tensor that is `used` as it is: a copy is none that another call could bring again.
inline WeightId id_of_weight(const at::Tensor& weight, const at::Tensor& used) {
  if (weight.is_inference() || !weight.has_storage() || !weight.is_same(used)) return {};
  return {std::make_shared<StorageOwner>(weight), weight.const_data_ptr(), weight._version()};
}

}  // namespace contnet_fast
