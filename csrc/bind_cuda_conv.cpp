// Registers the CUDA implementation of whole solves of the convolutional field: tensors in, csrc/cuda/conv_launch.h called.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/conv_launch.h"
#include "include/runtime.h"

namespace contnet_fast {
namespace {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// A time grid on the device. Evaluations that read the same theta(t) share a slot.
struct Grid {
  std::vector<int32_t> slots;  // of evaluations
  int32_t count = 0;           // of slots
  at::Tensor slot_of, mix;     // [evaluation], [slot, basis]
};

using GridKey = std::tuple<int, int64_t, std::vector<int64_t>, std::vector<int64_t>, std::vector<double>>;

Grid make_grid(const GridKey& key, at::Device device) {
  const auto& [index, basis, counts, cells, weights] = key;
  Grid grid;
  std::vector<std::vector<float>> mixes;
  size_t next = 0;
  for (int64_t count : counts) {
    std::vector<float> mix(basis, 0.f);
    for (; count > 0; --count, ++next) {
      TORCH_CHECK(next < cells.size() && cells[next] >= 0 && cells[next] < basis,
                  "conv_solve_cuda: a basis function outside the nodes");
      mix[cells[next]] += static_cast<float>(weights[next]);
    }
    const auto known = std::find(mixes.begin(), mixes.end(), mix);
    grid.slots.push_back(static_cast<int32_t>(known - mixes.begin()));
    if (known == mixes.end()) mixes.push_back(mix);
  }
  grid.count = static_cast<int32_t>(mixes.size());
  std::vector<float> flat;
  for (const auto& mix : mixes) flat.insert(flat.end(), mix.begin(), mix.end());
  grid.slot_of = at::tensor(grid.slots, at::kInt).to(device);
  grid.mix = at::tensor(flat, at::kFloat).to(device);
  return grid;
}

// Copied to the device once for each grid and kept: captured graphs have its address.
Grid grid_of(const GridKey& key, at::Device device) {
  static std::mutex guard;
  static std::map<GridKey, Grid> grids;
  const std::lock_guard<std::mutex> lock(guard);
  const auto known = grids.find(key);
  if (known != grids.end()) return known->second;
  TORCH_CHECK(c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None,
              "conv_solve on backend 'cuda' is used for the first time with this time grid while a CUDA graph is "
              "captured, which cannot copy its table; run the same call once before the capture");
  return grids.emplace(key, make_grid(key, device)).first->second;
}

cuda::Scalar scalar_of(at::ScalarType type, const char* what) {
  switch (type) {
    case at::kFloat: return cuda::Scalar::f32;
    case at::kBFloat16: return cuda::Scalar::bf16;
    case at::kHalf: return cuda::Scalar::f16;
    default: TORCH_CHECK(false, "conv_solve_cuda: ", what, " of dtype ", type, ": accepted are float16, bfloat16, float32");
  }
}

// The nodes as contiguous tensors: weights in the dtype of the operands, the others in one of theirs or float32.
struct Nodes {
  std::vector<at::Tensor> tensors;
  at::ScalarType operand, vectors;
  int64_t basis;

  Nodes(const OptionalTensors& nodes, int64_t channels) : tensors(cuda::kNodes) {
    TORCH_CHECK(nodes.size() == cuda::kNodes && nodes.get(0).has_value() && nodes.get(2).has_value(),
                "conv_solve_cuda: ", nodes.size(), " nodes, or no weights");
    operand = vectors = nodes.get(0)->scalar_type();
    basis = nodes.get(0)->size(0);
    for (int i = 0; i < cuda::kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (!node.has_value()) continue;
      const int64_t each = weight(i) ? 9 * channels * channels : i == cuda::kNodes - 1 ? 1 : channels;
      TORCH_CHECK(node->numel() == basis * each, "conv_solve_cuda: node ", i, " of ", node->sizes());
      if (!weight(i) && node->scalar_type() != operand) vectors = at::kFloat;
    }
    for (int i = 0; i < cuda::kNodes; ++i) {
      const std::optional<at::Tensor> node = nodes.get(i);
      if (node.has_value()) tensors[i] = node->to(weight(i) ? operand : vectors).resolve_neg().contiguous();
    }
  }
  static bool weight(int i) { return i == 0 || i == 2; }
  const void* data(int i) const { return tensors[i].defined() ? tensors[i].const_data_ptr() : nullptr; }
};

// [B, C, H, W] as dense [B, H, W, C], and the other way round with the strides of empty_like(x)
at::Tensor dense(const at::Tensor& x) { return x.resolve_neg().permute({0, 2, 3, 1}).contiguous(); }

at::Tensor like(const at::Tensor& x, const at::Tensor& value) {
  const at::Tensor result = value.permute({0, 3, 1, 2}), wanted = at::empty_like(x);
  return result.strides() == wanted.strides() ? result : wanted.copy_(result);
}

void describe_scheme(cuda::ConvProblem& p, at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps) {
  const size_t stages = update.size();
  TORCH_CHECK(stages >= 1 && stages <= cuda::kMostStages && rows.size() == stages * stages && n_steps >= 1,
              "conv_solve_cuda: ", stages, " stages: kernels combine at most ", cuda::kMostStages);
  p.stages = static_cast<int32_t>(stages);
  p.steps = static_cast<int32_t>(n_steps);
  for (size_t s = 0; s < stages; ++s) {
    p.update[s] = static_cast<float>(update[s]);
    for (size_t j = 0; j < s; ++j) p.rows[s][j] = static_cast<float>(rows[s * stages + j]);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> conv_solve_op(
    const at::Tensor& x, const OptionalTensors& given, std::string order, std::string norm, int64_t groups, double eps,
    double norm_eps, bool training, at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights,
    at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps, std::string keep, std::string level,
    bool return_steps) {
  TORCH_CHECK(x.dim() == 4, "conv_solve_cuda: x of ", x.dim(), " dimensions");
  TORCH_CHECK(level == "solve" && !(training && norm == "batch"), "conv_solve_cuda: level ", level, " with norm ", norm);
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t batch = x.size(0), channels = x.size(1);
  const Nodes nodes(given, channels);
  const bool sample = norm == "group" || norm == "layer";
  TORCH_CHECK(groups > 0 && channels % groups == 0, "conv_solve_cuda: ", groups, " groups of ", channels, " channels");

  cuda::ConvProblem p{};
  describe_scheme(p, rows, update, n_steps);
  const int64_t evaluations = n_steps * p.stages;
  TORCH_CHECK(static_cast<int64_t>(counts.size()) == evaluations && cells.size() == weights.size(),
              "conv_solve_cuda: a time grid of other sizes");
  const Grid grid = grid_of({x.device().index(), nodes.basis, counts.vec(), cells.vec(), weights.vec()}, x.device());
  const cuda::DeviceFacts device = cuda::current_device();
  p.state = scalar_of(x.scalar_type(), "x");
  p.operand = scalar_of(nodes.operand, "weights");
  p.vectors = scalar_of(nodes.vectors, "nodes");
  p.tf32 = nodes.operand == at::kFloat && at::globalContext().allowTF32CuDNN();
  p.post = order == "post";
  p.norm = norm == "none" ? cuda::Norm::none : sample ? cuda::Norm::sample : cuda::Norm::known;
  p.images = static_cast<int32_t>(batch);
  p.height = static_cast<int32_t>(x.size(2));
  p.width = static_cast<int32_t>(x.size(3));
  p.channels = static_cast<int32_t>(channels);
  p.group = static_cast<int32_t>(norm == "layer" ? channels : channels / groups);
  p.slots = grid.count;
  p.processors = device.processors;
  p.shared_limit = device.shared_limit;
  p.eps = static_cast<float>(eps);
  p.norm_eps = static_cast<float>(norm_eps);
  p.slot_of = grid.slot_of.const_data_ptr<int32_t>();
  p.slot_list = grid.slots.data();
  p.stream = c10::cuda::getCurrentCUDAStream().stream();

  const auto maps = [&](int64_t count) { return at::empty({count, batch, x.size(2), x.size(3), channels}, x.options()); };
  const auto floats = [&](at::IntArrayRef sizes) { return at::empty(sizes, x.options().dtype(at::kFloat)); };
  const int64_t kept_maps = keep == "none" || keep == "step" ? n_steps - 1 : 0;
  const at::Tensor start = dense(x), kept = maps(kept_maps);
  const at::Tensor moments = floats({evaluations, 2, 2, sample ? batch : norm == "none" ? 0 : 1, channels});
  const at::Tensor statistics =
      at::empty({0, 4, channels}, nodes.tensors[6].defined() ? nodes.tensors[6].options() : x.options());
  if (x.numel() == 0) {
    record("conv_solve", "cuda", "solve", 0);
    const at::Tensor nothing = return_steps ? at::empty({n_steps + 1, batch, channels, x.size(2), x.size(3)}, x.options())
                                            : at::empty_like(x);
    return {nothing, statistics, moments.zero_(), kept};
  }

  cuda::ConvPrepare prepare{p};
  const at::Tensor packed = at::empty({2, grid.count, 9, channels, channels}, x.options().dtype(nodes.operand));
  const at::Tensor parameters = floats({grid.count, cuda::kParameterRows, channels});
  for (int i = 0; i < cuda::kNodes; ++i) prepare.nodes[i] = nodes.data(i);
  prepare.mix = grid.mix.const_data_ptr<float>();
  prepare.basis = nodes.basis;
  prepare.packed = packed.mutable_data_ptr();
  prepare.parameters = parameters.mutable_data_ptr<float>();
  prepare.moments = p.norm == cuda::Norm::known ? moments.mutable_data_ptr<float>() : nullptr;

  cuda::ConvSolve solve{p};
  const cuda::SolvePlan plan = cuda::plan_solve(solve);
  TORCH_CHECK(plan.refusal == nullptr, "conv_solve_cuda: ", plan.refusal);
  const at::Tensor steps = return_steps ? maps(n_steps) : kept, y = return_steps ? steps[n_steps - 1] : maps(1)[0];
  const at::Tensor rates = at::empty({plan.scratch}, x.options().dtype(at::kByte));
  solve.x = start.const_data_ptr();
  solve.y = y.mutable_data_ptr();
  solve.states = n_steps > 1 && (return_steps || kept_maps > 0) ? steps.mutable_data_ptr() : nullptr;
  solve.packed = packed.const_data_ptr();
  solve.parameters = parameters.const_data_ptr<float>();
  solve.moments = norm == "none" ? nullptr : moments.mutable_data_ptr<float>();
  solve.rates = plan.scratch > 0 ? rates.mutable_data_ptr() : nullptr;
  cuda::conv_prepare(prepare);
  cuda::conv_solve(solve);
  record("conv_solve", "cuda", "solve", 2);
  if (!return_steps) return {like(x, y), statistics, moments, kept};
  if (kept_maps > 0) at::Tensor(kept).copy_(steps.slice(0, 0, n_steps - 1));
  const at::Tensor all = at::cat({start.unsqueeze(0), steps}).permute({0, 1, 4, 2, 3}).contiguous();
  return {all, statistics, moments, kept};
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CUDA, m) { m.impl("conv_solve_cuda", TORCH_FN(contnet_fast::conv_solve_op)); }
