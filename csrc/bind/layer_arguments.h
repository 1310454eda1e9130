// Tensors of single layers: the maps and parameters of ops that are parts of a module.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <utility>
#include <vector>

#include "cpu/conv/batch_norm.h"

namespace contnet_fast {

using OptionalTensor = std::optional<at::Tensor>;

// In float32 or float64, [batch, channels, height, width], with a value at least.
inline void check_state(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.numel() > 0, op, ": x of shape ", x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble, op, ": x in ", x.scalar_type());
}

// Contiguous, of so many values in the dtype of `x`.
inline at::Tensor parameter(const char* op, const at::Tensor& t, const at::Tensor& x, int64_t size, const char* name) {
  TORCH_CHECK(t.numel() == size && t.scalar_type() == x.scalar_type(), op, ": ", name, " of shape ", t.sizes(), " in ",
              t.scalar_type());
  return t.resolve_neg().contiguous();
}

inline at::Tensor channels_last(const at::Tensor& t) {
  return t.resolve_neg().contiguous(at::MemoryFormat::ChannelsLast);
}

template <typename T>
const T* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

enum NormPlace { kNormWeight, kNormBias, kNormMean, kNormVar, kNormTensors };

// The tensors of a batch norm, as schemas list them.
struct NormArguments {
  at::Tensor tensors[kNormTensors];

  NormArguments(const char* op, const at::Tensor& x, int64_t channels,
                const OptionalTensor* const (&given)[kNormTensors]) {
    for (int i = 0; i < kNormTensors; ++i)
      if (given[i]->has_value()) tensors[i] = parameter(op, **given[i], x, channels, "norm");
  }
  bool has_statistics() const { return tensors[kNormMean].defined() && tensors[kNormVar].defined(); }
  template <typename T>
  NormTensors<T> pointers() const {
    return {data_or_null<T>(tensors[kNormWeight]), data_or_null<T>(tensors[kNormBias]),
            data_or_null<T>(tensors[kNormMean]), data_or_null<T>(tensors[kNormVar])};
  }
};

// Gradients of an op's tensors by place, laid out like these; undefined tensors have none.
class LayerGradients {
 public:
  LayerGradients(const char* op, std::vector<at::Tensor> like, at::IntArrayRef wanted)
      : op_(op), like_(std::move(like)), found_(like_.size()), wanted_(wanted) {
    for (int64_t place : wanted) add(place);
  }
  void add(int64_t place) {
    const bool there = place >= 0 && place < static_cast<int64_t>(like_.size()) && like_[place].defined();
    TORCH_CHECK(there, op_, ": no gradient of tensor ", place);
    if (!found_[place].defined()) found_[place] = at::empty_like(like_[place]);
  }
  template <typename T>
  T* data(int place) const {
    return found_[place].defined() ? found_[place].mutable_data_ptr<T>() : nullptr;
  }
  // The wanted ones in their order.
  std::vector<at::Tensor> all() const {
    std::vector<at::Tensor> result;
    for (int64_t place : wanted_) result.push_back(found_[place]);
    return result;
  }

 private:
  const char* op_;
  std::vector<at::Tensor> like_, found_;
  at::IntArrayRef wanted_;
};

}  // namespace contnet_fast
