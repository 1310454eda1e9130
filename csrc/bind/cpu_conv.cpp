// Registers the C++ implementations of whole solves of the convolutional field: tensors in, plain descriptions out.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "bind/cpu_geometry.h"
#include "bind/solve_arguments.h"
#include "bind/weight_id.h"
#include "cpu/conv/choose_kernels.h"
#include "cpu/conv/conv_solve.h"
#include "runtime/runs.h"
#include "runtime/working_tensor.h"

namespace contnet_fast {
namespace {

at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// A message by the ops that torch.distributed has in graphs. Numbers travel in `type`, the dtype of the sums.
Gather messages(const SolveArguments& a, at::ScalarType type) {
  if (a.ranks == 1) return nullptr;
  // called with values in boxes, as the type of the name's argument differs between releases of torch
  const auto find = [](const char* op) { return c10::Dispatcher::singleton().findSchemaOrThrow(op, ""); };
  const c10::OperatorHandle all = find("_c10d_functional::all_gather_into_tensor");
  const c10::OperatorHandle wait = find("_c10d_functional::wait_tensor");
  return [all, wait, group = a.group, ranks = a.ranks, type](const std::vector<double>& row) {
    torch::jit::Stack stack{at::tensor(row, at::kDouble).to(type), ranks, group};
    all.callBoxed(stack);
    wait.callBoxed(stack);
    const at::Tensor rows = stack.back().toTensor().to(at::kDouble).contiguous();
    const double* data = rows.const_data_ptr<double>();
    return std::vector<double>(data, data + rows.numel());
  };
}

SolveSpec describe(const at::Tensor& x, const SolveArguments& a) {
  SolveSpec spec{};
  spec.batch = x.size(0);
  spec.map = choose_geometry(a.op, x, a.products);
  spec.post = a.order == FieldOrder::post;
  spec.norm = a.norm == FieldNorm::none ? Norm::none : a.norm == FieldNorm::batch ? Norm::batch : Norm::sample;
  spec.groups = static_cast<int>(a.groups);
  spec.eps = a.eps;
  spec.norm_eps = a.norm_eps;
  spec.batch_statistics = a.batch_statistics;
  spec.gather = messages(a, compute_type(x));
  spec.n_steps = static_cast<int>(a.n_steps);
  spec.stages = static_cast<int>(a.stages);
  spec.keep = a.keep;
  spec.by_stage = a.level == Level::stage;
  TORCH_CHECK(spec.by_stage || !spec.batch_statistics, a.op, ": batch statistics at level solve");
  TORCH_CHECK(spec.stages < kTerms, a.op, ": ", spec.stages, " stages: kernels combine at most ", kTerms - 1);
  for (int64_t s = 0; s < a.stages; ++s) {
    const at::ArrayRef<double> row = a.rows.slice(s * a.stages, a.stages);
    spec.rows.emplace_back(row.begin(), row.end());
  }
  spec.update = a.update.vec();
  spec.grid = a.grid;
  return spec;
}

// The nodes as contiguous tensors of the type that is computed in.
struct Nodes {
  std::vector<at::Tensor> tensors;
  WeightId weight_ids[2];
  Nodes(const OptionalTensors& nodes, at::ScalarType type) : tensors(kNodes) {
    for (int i = 0; i < kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (node.has_value()) tensors[i] = node->to(type).resolve_neg().contiguous();
    }
    for (int c = 0; c < 2; ++c)
      weight_ids[c] = id_of_weight(*nodes.get(c ? kWeight2 : kWeight1), tensors[c ? kWeight2 : kWeight1]);
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
    for (const auto& [k, w] : spec.grid.slots[spec.grid.slot_of[j]])
      for (int i = 0; i < 4; ++i) all.select(0, j).select(0, i).add_(nodes.tensors[kinds[i]].select(0, k), w);
}

template <typename T>
std::vector<ImageBatch<const T>> grid_points(const at::Tensor& t) {
  std::vector<ImageBatch<const T>> all;
  if (t.dim() == 4) all.push_back(images<const T>(t, t.const_data_ptr<T>()));
  for (int64_t i = 0; t.dim() == 5 && i < t.size(0); ++i) all.push_back(images<const T>(t, t.const_data_ptr<T>(), i));
  return all;
}

SolveResults solve(const at::Tensor& x, const OptionalTensors& nodes, const SolveArguments& a, bool return_steps) {
  record("conv_solve", "cpu", a.level_word);
  const SolveSpec spec = describe(x, a);
  const int64_t n_steps = a.n_steps;
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
  double values = 0.0;
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
    call.values = &values;
    if (x.numel() > 0 || spec.gather) conv_solve(spec, choose_kernels<scalar_t>(spec.map), call);
  });
  if (x.numel() == 0 && !spec.gather) moments.zero_();
  if (x.numel() == 0 && values == 0.0 && spec.batch_statistics) running_statistics(spec, params, statistics);
  const std::optional<at::Tensor> running = nodes.get(kMean1);  // in whose dtype those of the batch are
  const at::ScalarType reported = running.has_value() ? running->scalar_type() : x.scalar_type();
  return {y.to(x.scalar_type()), statistics.to(reported), moments, kept};
}

std::vector<at::Tensor> solve_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensors& nodes,
                                       const SolveArguments& a, const at::Tensor& moments, const at::Tensor& kept,
                                       at::IntArrayRef wanted) {
  record("conv_solve_backward", "cpu", "stage");
  const SolveSpec spec = describe(x, a);
  TORCH_CHECK(kept.size(0) == spec.kept_maps(), a.op, ": ", kept.size(0), " maps kept, expected ", spec.kept_maps());
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
    if (x.numel() > 0 || spec.gather) conv_solve_backward(spec, choose_kernels<scalar_t>(spec.map), call);
  });
  std::vector<at::Tensor> all{x_grad.to(x.scalar_type())};
  for (size_t i = 0; i < wanted.size(); ++i) all.push_back(grads[i].to(nodes.get(wanted[i])->scalar_type()));
  return all;
}

struct Cpu {
  static constexpr const char *op = "conv_solve_cpu", *backward_op = "conv_solve_backward_cpu";
  static constexpr Solve solve = contnet_fast::solve;
  static constexpr SolveBackward solve_backward = contnet_fast::solve_backward;
};

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl(contnet_fast::Cpu::op, TORCH_FN(contnet_fast::conv_solve_op<contnet_fast::Cpu>));
  m.impl(contnet_fast::Cpu::backward_op, TORCH_FN(contnet_fast::conv_solve_backward_op<contnet_fast::Cpu>));
}
