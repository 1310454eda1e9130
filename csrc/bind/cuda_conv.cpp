// Registers the CUDA implementation of whole solves of the convolutional field: tensors in, cuda/conv/conv_launch.h
// called.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bind/device_grid.h"
#include "bind/solve_arguments.h"
#include "cuda/conv/conv_launch.h"
#include "runtime/runs.h"

namespace contnet_fast {
namespace {

cuda::Scalar scalar_of(at::ScalarType type, const char* what) {
  switch (type) {
    case at::kFloat: return cuda::Scalar::f32;
    case at::kBFloat16: return cuda::Scalar::bf16;
    case at::kHalf: return cuda::Scalar::f16;
    default:
      TORCH_CHECK(false, "conv_solve_cuda: ", what, " of dtype ", type, ": accepted are float16, bfloat16, float32");
  }
}

// The nodes as contiguous tensors: weights in the dtype of the operands, the others in one of theirs or float32.
struct Nodes {
  std::vector<at::Tensor> tensors;
  at::ScalarType operand, vectors;
  int64_t basis;

  explicit Nodes(const OptionalTensors& nodes) : tensors(kNodes) {
    operand = vectors = nodes.get(kWeight1)->scalar_type();
    basis = nodes.get(kWeight1)->size(0);
    for (int i = 0; i < kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (node.has_value() && !is_weight(i) && node->scalar_type() != operand) vectors = at::kFloat;
    }
    for (int i = 0; i < kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (node.has_value()) tensors[i] = node->to(is_weight(i) ? operand : vectors).resolve_neg().contiguous();
    }
  }
  const void* data(int i) const { return tensors[i].defined() ? tensors[i].const_data_ptr() : nullptr; }
};

// [..., C, H, W] as dense [..., H, W, C] where vectors of 16 bytes can be read, and back with the strides of
// empty_like(x)
at::Tensor dense(const at::Tensor& x) {
  const at::Tensor result = x.resolve_neg().movedim(-3, -1).contiguous();
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone();
}

at::Tensor like(const at::Tensor& x, const at::Tensor& value) {
  const at::Tensor result = value.permute({0, 3, 1, 2}), wanted = at::empty_like(x);
  return result.strides() == wanted.strides() ? result : wanted.copy_(result);
}

void describe_scheme(cuda::ConvProblem& p, const SolveArguments& a) {
  const int64_t stages = a.stages;
  TORCH_CHECK(stages <= cuda::kMostStages, a.op, ": ", stages, " stages: kernels combine at most ", cuda::kMostStages);
  p.stages = static_cast<int32_t>(stages);
  p.steps = static_cast<int32_t>(a.n_steps);
  for (int64_t s = 0; s < stages; ++s) {
    p.update[s] = static_cast<float>(a.update[s]);
    for (int64_t j = 0; j < s; ++j) p.rows[s][j] = static_cast<float>(a.rows[s * stages + j]);
  }
}

// One call: its tensors, and what the kernels are told of it.
struct Call {
  at::Tensor x, start;  // as given; dense
  Nodes nodes;
  const DeviceGrid& grid;
  bool sample, stage;
  cuda::ConvProblem problem{};

  Call(const at::Tensor& x, const OptionalTensors& given, const SolveArguments& a)
      : x(x),
        nodes(given),
        grid(grid_of("conv_solve", a.grid, x.device(), at::kFloat)),
        sample(a.sample_norm()),
        stage(a.level == Level::stage) {
    TORCH_CHECK(stage ? !sample : !a.batch_statistics, a.op, ": level ", a.level_word, " with norm ", a.norm_word,
                a.batch_statistics ? " in training" : "");
    cuda::ConvProblem& p = problem;
    describe_scheme(p, a);
    p.state = scalar_of(x.scalar_type(), "x");
    p.operand = scalar_of(nodes.operand, "weights");
    p.vectors = scalar_of(nodes.vectors, "nodes");
    start = dense(x);
    p.tf32 = nodes.operand == at::kFloat && at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
    p.post = a.order == FieldOrder::post;
    p.norm = a.norm == FieldNorm::none ? cuda::Norm::none
             : sample                  ? cuda::Norm::sample
             : a.batch_statistics      ? cuda::Norm::batch
                                       : cuda::Norm::known;
    p.images = static_cast<int32_t>(x.size(0));
    p.height = static_cast<int32_t>(x.size(2));
    p.width = static_cast<int32_t>(x.size(3));
    p.channels = static_cast<int32_t>(x.size(1));
    p.group = static_cast<int32_t>(x.size(1) / a.groups);
    p.slots = grid.count;
    const cuda::DeviceFacts device = cuda::current_device();
    p.processors = device.processors;
    p.cluster_limit = device.cluster_limit;
    p.shared_limit = device.shared_limit;
    p.eps = static_cast<float>(a.eps);
    p.norm_eps = static_cast<float>(a.norm_eps);
    p.slot_of = grid.slot_of.const_data_ptr<int32_t>();
    p.slot_list = grid.host.slot_of.data();
    p.stream = c10::cuda::getCurrentCUDAStream().stream();
  }

  int64_t evaluations() const { return int64_t{1} * problem.steps * problem.stages; }
  int64_t moment_rows() const { return sample ? x.size(0) : problem.norm == cuda::Norm::none ? 0 : 1; }
  at::Tensor maps(int64_t count) const {
    return at::empty({count, x.size(0), x.size(2), x.size(3), x.size(1)}, x.options());
  }
  at::Tensor floats(at::IntArrayRef sizes) const { return at::empty(sizes, x.options().dtype(at::kFloat)); }
  at::Tensor bytes(int64_t count) const { return at::empty({count}, x.options().dtype(at::kByte)); }

  // fills the nodes and the grid of a structure that has them
  template <typename P>
  P with_nodes() const {
    P p{problem};
    for (int i = 0; i < kNodes; ++i) p.nodes[i] = nodes.data(i);
    p.mix = grid.mix.const_data_ptr<float>();
    p.basis = nodes.basis;
    return p;
  }
};

const void* data_or_null(const at::Tensor& t) { return t.defined() && t.numel() > 0 ? t.const_data_ptr() : nullptr; }
void* mutable_or_null(const at::Tensor& t) { return t.defined() && t.numel() > 0 ? t.mutable_data_ptr() : nullptr; }

// Weights, parameters and known moments, mixed in one launch.
struct Prepared {
  at::Tensor packed, parameters;
  // `moments` are written if the norm is known and they are there
  Prepared(const Call& call, const at::Tensor& moments = {})
      : packed(at::empty({2, call.grid.count, 9, call.x.size(1), call.x.size(1)},
                         call.x.options().dtype(call.nodes.operand))),
        parameters(call.floats({call.grid.count, cuda::kParameterRows, call.x.size(1)})) {
    auto p = call.with_nodes<cuda::ConvPrepare>();
    p.packed = packed.mutable_data_ptr();
    p.parameters = parameters.mutable_data_ptr<float>();
    p.moments =
        call.problem.norm == cuda::Norm::known && moments.defined() ? moments.mutable_data_ptr<float>() : nullptr;
    cuda::conv_prepare(p);
  }
};

// What a forward pass writes: dense maps; `states` between steps and the `tape` of all maps, or none.
struct Results {
  at::Tensor y, states, tape, moments, statistics;
};

void run_solve(const Call& call, const Results& to) {
  cuda::ConvSolve p{call.problem};
  const cuda::SolvePlan plan = cuda::plan_solve(p);
  TORCH_CHECK(plan.refusal == nullptr, "conv_solve_cuda: ", plan.refusal);
  const Prepared prepared(call, to.moments);
  const at::Tensor rates = call.bytes(plan.scratch);
  p.x = call.start.const_data_ptr();
  p.y = to.y.mutable_data_ptr();
  p.states = mutable_or_null(to.states);
  p.packed = prepared.packed.const_data_ptr();
  p.parameters = prepared.parameters.const_data_ptr<float>();
  p.moments = static_cast<float*>(mutable_or_null(to.moments));
  p.rates = plan.scratch > 0 ? rates.mutable_data_ptr() : nullptr;
  cuda::conv_solve(p);
}

void solve_back(const Call& call, const at::Tensor& upstream, const at::Tensor& states, const at::Tensor& moments,
                const at::Tensor& x_grad, const std::vector<at::Tensor>& grads) {
  cuda::ConvSolveBackward p{call.problem};
  p.skip = call.nodes.tensors[kSkip].defined();
  p.return_steps = upstream.dim() == 5;
  p.mix = call.grid.mix.const_data_ptr<float>();
  p.basis = call.nodes.basis;
  const cuda::SolveBackwardPlan plan = cuda::plan_solve_backward(p);
  TORCH_CHECK(plan.refusal == nullptr, "conv_solve_backward_cuda: ", plan.refusal);
  const Prepared prepared(call);
  const at::Tensor workspace = call.bytes(plan.workspace);
  p.x = call.start.const_data_ptr();
  p.states = data_or_null(states);
  p.packed = prepared.packed.const_data_ptr();
  p.parameters = prepared.parameters.const_data_ptr<float>();
  p.moments = static_cast<const float*>(data_or_null(moments));
  p.grad = upstream.const_data_ptr();
  p.grad_x = x_grad.mutable_data_ptr();
  for (int i = 0; i < kNodes; ++i) p.grads[i] = static_cast<float*>(mutable_or_null(grads[i]));
  p.workspace = workspace.mutable_data_ptr();
  cuda::conv_solve_backward(p);
}

void stages_back(const Call& call, const at::Tensor& upstream, const at::Tensor& kept, bool tape,
                 const at::Tensor& moments, const at::Tensor& x_grad, const std::vector<at::Tensor>& grads) {
  auto p = call.with_nodes<cuda::ConvStagesBackward>();
  p.x = call.start.const_data_ptr();
  p.moments = static_cast<float*>(mutable_or_null(moments));
  (tape ? p.tape : p.states) = data_or_null(kept);
  p.grad = upstream.const_data_ptr();
  p.by_step = upstream.dim() == 5;
  p.grad_x = x_grad.mutable_data_ptr();
  for (int i = 0; i < kNodes; ++i) p.grads[i] = static_cast<float*>(mutable_or_null(grads[i]));
  const cuda::StepsPlan plan = cuda::plan_stages_backward(p);
  TORCH_CHECK(plan.refusal == nullptr, "conv_solve_backward_cuda: ", plan.refusal);
  const at::Tensor workspace = call.bytes(plan.workspace);
  p.workspace = workspace.mutable_data_ptr();
  cuda::conv_stages_backward(p);
}

void run_stages(const Call& call, const Results& to) {
  auto p = call.with_nodes<cuda::ConvStages>();
  const cuda::StepsPlan plan = cuda::plan_stages(p);
  TORCH_CHECK(plan.refusal == nullptr, "conv_solve_cuda: ", plan.refusal);
  const at::Tensor workspace = call.bytes(plan.workspace);
  p.x = call.start.const_data_ptr();
  p.y = to.y.mutable_data_ptr();
  p.states = mutable_or_null(to.states);
  p.moments = static_cast<float*>(mutable_or_null(to.moments));
  p.statistics = mutable_or_null(to.statistics);
  p.tape = mutable_or_null(to.tape);
  p.workspace = workspace.mutable_data_ptr();
  cuda::conv_stages(p);
}

// An empty batch has no statistics of its own: the running ones stand for them.
void running_statistics(const Call& call, const at::Tensor& out) {
  const at::Tensor mix = call.grid.mix.index_select(0, call.grid.slot_of).unsqueeze(-1);  // [evaluation, node, 1]
  constexpr Node kinds[] = {kMean1, kVar1, kMean2, kVar2};
  for (int i = 0; i < 4; ++i) at::Tensor(out.select(1, i)).copy_((mix * call.nodes.tensors[kinds[i]]).sum(1));
}

SolveResults solve(const at::Tensor& x, const OptionalTensors& given, const SolveArguments& a, bool return_steps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Call call(x, given, a);
  const int64_t n_steps = a.n_steps;
  const bool coupled = call.problem.norm == cuda::Norm::batch;
  const std::optional<at::Tensor> mean = given.get(kMean1);
  const at::ScalarType type = mean.has_value() ? mean->scalar_type() : x.scalar_type();
  const at::Tensor moments = call.floats({call.evaluations(), 2, 2, call.moment_rows(), x.size(1)});
  const at::Tensor statistics = at::empty({coupled ? call.evaluations() : 0, 4, x.size(1)},
                                          x.options().dtype(coupled ? call.nodes.vectors : type));
  const bool tape = a.keep == Keep::everything && call.stage;
  const int64_t states = a.keep == Keep::everything || a.keep == Keep::steps ? n_steps - 1 : 0;
  const at::Tensor kept = call.maps(tape ? call.evaluations() * cuda::kinds(call.problem) : states);
  if (x.numel() == 0) {
    record("conv_solve", "cuda", a.level_word, 0);
    if (coupled) running_statistics(call, statistics);
    const at::Tensor nothing = return_steps
                                   ? at::empty({n_steps + 1, x.size(0), x.size(1), x.size(2), x.size(3)}, x.options())
                                   : at::empty_like(x);
    return {nothing, statistics.to(type), moments.zero_(), kept};
  }
  const at::Tensor steps = return_steps ? call.maps(n_steps) : at::Tensor();
  const at::Tensor y = return_steps ? steps[n_steps - 1] : call.maps(1)[0];
  const at::Tensor between = return_steps ? steps.slice(0, 0, n_steps - 1) : tape ? at::Tensor() : kept;
  const Results results{y, between, tape ? kept : at::Tensor(), moments, statistics};
  const int64_t launched = cuda::launch_count();
  call.stage ? run_stages(call, results) : run_solve(call, results);
  record("conv_solve", "cuda", a.level_word, static_cast<int>(cuda::launch_count() - launched));
  if (!return_steps) return {like(x, y), statistics.to(type), moments, kept};
  if (!tape && states > 0) at::Tensor(kept).copy_(between);
  const at::Tensor all = at::cat({call.start.unsqueeze(0), steps}).permute({0, 1, 4, 2, 3}).contiguous();
  return {all, statistics.to(type), moments, kept};
}

std::vector<at::Tensor> solve_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensors& given,
                                       const SolveArguments& a, const at::Tensor& moments, const at::Tensor& kept,
                                       at::IntArrayRef wanted) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Call call(x, given, a);
  const int64_t n_steps = a.n_steps;
  std::vector<at::Tensor> results;
  if (x.numel() == 0) {
    record("conv_solve_backward", "cuda", a.level_word, 0);
    results.push_back(at::empty_like(x));
    for (int64_t i : wanted) results.push_back(at::zeros_like(*given.get(i)));
    return results;
  }
  const at::Tensor upstream = dense(grad.to(x.scalar_type()));
  const at::Tensor x_grad = call.maps(1)[0];
  std::vector<at::Tensor> grads(kNodes);
  for (int64_t i : wanted) grads[i] = call.floats(given.get(i)->sizes());
  const bool by_stage = call.stage || cuda::plan_solve(call.problem).wide;  // of wide maps the states alone are kept
  const int64_t launched = cuda::launch_count();
  if (by_stage) {
    stages_back(call, upstream, kept, call.stage && a.keep == Keep::everything, moments, x_grad, grads);
  } else {
    at::Tensor states = kept;
    if (a.keep == Keep::input && n_steps > 1) {
      states = call.maps(n_steps - 1);
      run_solve(call, {call.maps(1)[0], states, {}, call.sample ? at::empty_like(moments) : moments, {}});
    }
    solve_back(call, upstream, states, moments, x_grad, grads);
  }
  record("conv_solve_backward", "cuda", a.level_word, static_cast<int>(cuda::launch_count() - launched));
  results.push_back(like(x, x_grad));
  for (int64_t i : wanted) results.push_back(grads[i].to(given.get(i)->scalar_type()));
  return results;
}

struct Cuda {
  static constexpr const char *op = "conv_solve_cuda", *backward_op = "conv_solve_backward_cuda";
  static constexpr Solve solve = contnet_fast::solve;
  static constexpr SolveBackward solve_backward = contnet_fast::solve_backward;
};

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CUDA, m) {
  m.impl(contnet_fast::Cuda::op, TORCH_FN(contnet_fast::conv_solve_op<contnet_fast::Cuda>));
  m.impl(contnet_fast::Cuda::backward_op, TORCH_FN(contnet_fast::conv_solve_backward_op<contnet_fast::Cuda>));
}
