// Registers the C++ implementations of whole solves of the convolutional field: tensors in, plain descriptions out.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv/conv_solve.h"
#include "runtime/isa.h"
#include "runtime/runs.h"
#include "runtime/working_tensor.h"

namespace contnet_fast {
namespace {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

template <typename T>
const ConvKernels<T>& choose_kernels(int padded) {
#ifdef CONTNET_FAST_X86
  if constexpr (std::is_same_v<T, float>) {
    if (instruction_set() == Isa::avx512) return avx512::conv_f32(padded);
    if (instruction_set() == Isa::avx2) return avx2::conv_f32(padded);
  } else {
    if (instruction_set() == Isa::avx512) return avx512::conv_f64(padded);
    if (instruction_set() == Isa::avx2) return avx2::conv_f64(padded);
  }
#endif
  if constexpr (std::is_same_v<T, float>)
    return portable::conv_f32(padded);
  else
    return portable::conv_f64(padded);
}

at::ScalarType compute_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The arguments that both ops share, in the order of their schemas.
struct Arguments {
  std::string order, norm;
  int64_t groups;
  double eps, norm_eps;
  bool training;
  c10::ArrayRef<int64_t> counts, cells;
  c10::ArrayRef<double> weights, rows, update;
  int64_t n_steps;
  std::string keep, level;
};

SolveSpec describe(const at::Tensor& x, const OptionalTensors& nodes, const Arguments& a) {
  TORCH_CHECK(x.dim() == 4, "conv_solve_cpu: x of ", x.dim(), " dimensions");
  TORCH_CHECK(nodes.size() == kNodes && nodes.get(0).has_value(), "conv_solve_cpu: ", nodes.size(), " nodes");
  SolveSpec spec{};
  spec.batch = x.size(0);
  spec.map = geometry(x.size(2), x.size(3), x.size(1));
  spec.post = a.order == "post";
  spec.norm = a.norm == "none" ? Norm::none : a.norm == "batch" ? Norm::batch : Norm::sample;
  spec.groups = a.norm == "layer" ? 1 : static_cast<int>(a.groups);
  spec.eps = a.eps;
  spec.norm_eps = a.norm_eps;
  spec.batch_statistics = a.training && spec.norm == Norm::batch;
  spec.n_steps = static_cast<int>(a.n_steps);
  spec.stages = static_cast<int>(a.update.size());
  spec.basis = nodes.get(0)->size(0);
  spec.keep = a.keep == "step"    ? Keep::steps
              : a.keep == "none"  ? Keep::everything
              : a.keep == "block" ? Keep::input
                                  : Keep::nothing;
  spec.by_stage = a.level == "stage";
  TORCH_CHECK(spec.by_stage || !spec.batch_statistics, "conv_solve_cpu: batch statistics at level solve");
  TORCH_CHECK(spec.stages >= 1 && spec.stages < kTerms, "conv_solve_cpu: ", spec.stages, " stages");
  const int64_t channels = x.size(1);
  TORCH_CHECK(spec.groups > 0 && channels % spec.groups == 0, "conv_solve_cpu: ", spec.groups, " groups");
  TORCH_CHECK(nodes.get(kWeight2).has_value(), "conv_solve_cpu: no weights of the second convolution");
  for (int i = 0; i < kNodes; ++i) {
    const std::optional<at::Tensor> node = nodes.get(i);
    const int64_t each = i == kWeight1 || i == kWeight2 ? 9 * channels * channels : i == kSkip ? 1 : channels;
    TORCH_CHECK(!node || node->numel() == spec.basis * each, "conv_solve_cpu: node ", i, " of ", node->sizes());
  }
  const size_t s = spec.stages;
  TORCH_CHECK(a.rows.size() == s * s && a.counts.size() == spec.n_steps * s && a.cells.size() == a.weights.size(),
              "conv_solve_cpu: a time grid of other sizes");
  for (size_t r = 0; r < s; ++r) spec.rows.emplace_back(a.rows.begin() + r * s, a.rows.begin() + (r + 1) * s);
  spec.update.assign(a.update.begin(), a.update.end());
  size_t next = 0;
  for (int64_t count : a.counts) {
    std::vector<std::pair<int, double>> slot;
    for (; count > 0; --count, ++next) {
      TORCH_CHECK(next < a.cells.size() && a.cells[next] >= 0 && a.cells[next] < spec.basis,
                  "conv_solve_cpu: a basis function outside the nodes");
      slot.emplace_back(static_cast<int>(a.cells[next]), a.weights[next]);
    }
    const auto known = std::find(spec.slots.begin(), spec.slots.end(), slot);
    spec.slot.push_back(static_cast<int>(known - spec.slots.begin()));
    if (known == spec.slots.end()) spec.slots.push_back(slot);
  }
  return spec;
}

struct StorageOwner : WeightOwner {
  explicit StorageOwner(const at::Tensor& tensor) : weak(tensor.storage().getWeakStorageImpl()) {}
  const void* storage() const override { return weak._unsafe_get_target(); }
  bool gone() const override { return weak.expired(); }
  c10::weak_intrusive_ptr<c10::StorageImpl> weak;
};

// The nodes as contiguous tensors of the type that is computed in.
struct Nodes {
  std::vector<at::Tensor> tensors;
  WeightId weight_ids[2];
  Nodes(const OptionalTensors& nodes, at::ScalarType type) : tensors(kNodes) {
    for (int i = 0; i < kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (node.has_value()) tensors[i] = node->to(type).resolve_neg().contiguous();
    }
    for (int c = 0; c < 2; ++c) {  // a copy is no tensor that another call could bring again
      const at::Tensor weight = *nodes.get(c ? kWeight2 : kWeight1);
      if (!weight.is_inference() && weight.has_storage() && weight.is_same(tensors[c ? kWeight2 : kWeight1]))
        weight_ids[c] = {std::make_shared<StorageOwner>(weight), weight.const_data_ptr(), weight._version()};
    }
  }
  template <typename T>
  void point(const T** to, WeightId* ids) const {
    for (int i = 0; i < kNodes; ++i) to[i] = tensors[i].defined() ? tensors[i].const_data_ptr<T>() : nullptr;
    ids[0] = weight_ids[0], ids[1] = weight_ids[1];
  }
};

// An empty batch has no statistics of its own: the running ones stand for them.
void running_statistics(const SolveSpec& spec, const Nodes& nodes, const at::Tensor& out) {
  constexpr Node kinds[] = {kMean1, kVar1, kMean2, kVar2};
  at::Tensor all = out;
  all.zero_();
  for (int j = 0; j < spec.evaluations(); ++j)
    for (const auto& [k, w] : spec.slots[spec.slot[j]])
      for (int i = 0; i < 4; ++i) all.select(0, j).select(0, i).add_(nodes.tensors[kinds[i]].select(0, k), w);
}

template <typename T, typename P>
ImageBatch<T> images(const at::Tensor& t, P* data, int64_t step = -1) {
  const auto s = t.strides().slice(step < 0 ? 0 : 1);
  return {data + (step < 0 ? 0 : step * t.stride(0)), s[0], s[1], s[2], s[3]};
}

template <typename T>
std::vector<ImageBatch<const T>> grid_points(const at::Tensor& t) {
  std::vector<ImageBatch<const T>> all;
  if (t.dim() == 4) all.push_back(images<const T>(t, t.const_data_ptr<T>()));
  for (int64_t i = 0; t.dim() == 5 && i < t.size(0); ++i)
    all.push_back(images<const T>(t, t.const_data_ptr<T>(), i));
  return all;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> conv_solve_op(
    const at::Tensor& x, const OptionalTensors& nodes, std::string order, std::string norm, int64_t groups, double eps,
    double norm_eps, bool training, at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights,
    at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps, std::string keep, std::string level,
    bool return_steps) {
  record("conv_solve", "cpu", level.c_str());
  const SolveSpec spec = describe(
      x, nodes, {order, norm, groups, eps, norm_eps, training, counts, cells, weights, rows, update, n_steps, keep, level});
  const at::ScalarType type = compute_type(x);
  const at::Tensor input = x.to(type);
  const Nodes params(nodes, type);
  const auto options = x.options().dtype(type);
  const at::Tensor y = return_steps ? at::empty({n_steps + 1, x.size(0), x.size(1), x.size(2), x.size(3)}, options)
                                    : at::empty_like(x, options);
  const int64_t c = x.size(1), padded = spec.map.padded;
  const at::Tensor statistics = at::empty({spec.batch_statistics ? spec.evaluations() : 0, 4, c}, options);
  const at::Tensor moments = at::empty({spec.evaluations(), 2, 2, spec.moment_rows(), padded}, options);
  const std::vector<int64_t> maps{spec.kept_maps(), spec.batch, x.size(2), x.size(3), padded};
  const at::Tensor kept = working_tensor(maps, c10::contiguous_strides(maps), type);
  AT_DISPATCH_FLOATING_TYPES(type, "conv_solve_cpu", [&] {
    ForwardCall<scalar_t> call{};
    call.x = images<const scalar_t>(input, input.const_data_ptr<scalar_t>());
    params.point(call.nodes, call.weight_ids);
    scalar_t* out = y.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i <= n_steps; ++i)
      if (return_steps) call.out.push_back(images<scalar_t>(y, out, i));
    if (!return_steps) call.out.push_back(images<scalar_t>(y, out));
    call.kept = kept.mutable_data_ptr<scalar_t>();
    call.moments = moments.mutable_data_ptr<scalar_t>();
    call.statistics = statistics.mutable_data_ptr<scalar_t>();
    if (x.numel() > 0) conv_solve(spec, choose_kernels<scalar_t>(spec.map.padded), call);
  });
  if (x.numel() == 0) {
    moments.zero_();
    if (spec.batch_statistics) running_statistics(spec, params, statistics);
  }
  return {y.to(x.scalar_type()), statistics.to(x.scalar_type()), moments, kept};
}

std::vector<at::Tensor> conv_solve_backward_op(
    const at::Tensor& grad, const at::Tensor& x, const OptionalTensors& nodes, std::string order, std::string norm,
    int64_t groups, double eps, double norm_eps, bool training, at::IntArrayRef counts, at::IntArrayRef cells,
    at::ArrayRef<double> weights, at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps,
    std::string keep, std::string level, const at::Tensor& moments, const at::Tensor& kept, at::IntArrayRef wanted) {
  record("conv_solve_backward", "cpu", "stage");
  const SolveSpec spec = describe(
      x, nodes, {order, norm, groups, eps, norm_eps, training, counts, cells, weights, rows, update, n_steps, keep, level});
  TORCH_CHECK(kept.size(0) == spec.kept_maps(), "conv_solve_backward_cpu: ", kept.size(0), " maps kept, expected ",
              spec.kept_maps());
  const at::ScalarType type = compute_type(x);
  const at::Tensor input = x.to(type), upstream = grad.to(type);
  const Nodes params(nodes, type);
  at::Tensor x_grad = at::empty_like(x, x.options().dtype(type));
  std::vector<at::Tensor> grads;
  for (int64_t node : wanted) grads.push_back(at::zeros_like(params.tensors[node]));
  AT_DISPATCH_FLOATING_TYPES(type, "conv_solve_backward_cpu", [&] {
    BackwardCall<scalar_t> call{};
    call.x = images<const scalar_t>(input, input.const_data_ptr<scalar_t>());
    params.point(call.nodes, call.weight_ids);
    call.out_grad = grid_points<scalar_t>(upstream);
    call.kept = kept.const_data_ptr<scalar_t>();
    call.moments = moments.const_data_ptr<scalar_t>();
    call.x_grad = images<scalar_t>(x_grad, x_grad.mutable_data_ptr<scalar_t>());
    for (size_t i = 0; i < wanted.size(); ++i) call.node_grads[wanted[i]] = grads[i].mutable_data_ptr<scalar_t>();
    if (x.numel() > 0) conv_solve_backward(spec, choose_kernels<scalar_t>(spec.map.padded), call);
  });
  std::vector<at::Tensor> all{x_grad.to(x.scalar_type())};
  for (size_t i = 0; i < wanted.size(); ++i) all.push_back(grads[i].to(nodes.get(wanted[i])->scalar_type()));
  return all;
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl("conv_solve_cpu", TORCH_FN(contnet_fast::conv_solve_op));
  m.impl("conv_solve_backward_cpu", TORCH_FN(contnet_fast::conv_solve_backward_op));
}
