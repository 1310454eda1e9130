// Registers the CUDA implementation of whole solves of the diffusion field of a graph: tensors in,
// cuda/graph/graph_launch.h called.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bind/device_grid.h"
#include "bind/device_tensors.h"
#include "bind/diffusion_places.h"
#include "bind/leaves.h"
#include "bind/schema_arguments.h"
#include "cuda/graph/graph_launch.h"
#include "cuda/graph/slice_plan.h"
#include "runtime/runs.h"

namespace contnet_fast::graphs {
namespace {

constexpr const char *kOp = "diffusion_solve_cuda", *kBackwardOp = "diffusion_solve_backward_cuda";

at::Tensor like(const at::Tensor& x, const at::Tensor& value) {
  const at::Tensor wanted = at::empty_like(x);
  return value.strides() == wanted.strides() ? value : wanted.copy_(value);
}

// What is read of the arguments that both ops share, checked.
struct Arguments {
  const char* op;
  at::ScalarType type, sums;
  at::Tensor x, source, values, coefficients[kCoefficients];
  at::Tensor mixing;          // the diagonal alone
  at::Tensor parts[kPlaces];  // those of the graph that are integers
  int64_t n_steps, stages;
  Keep keep;
  Level level;
  const DeviceGrid& grid;
  std::vector<double> rows, update;  // with t_end

  Arguments(const char* op, const at::Tensor& state, const OptionalTensors& nodes, const OptionalTensors& operands,
            const SchemaArguments& given)
      : op(op),
        type(state.scalar_type()),
        sums(sum_type(type)),
        n_steps(given.n_steps),
        stages(given.stages()),
        keep(read_word(op, "keep", given.keep, kKeeps)),
        level(read_word(op, "level", given.level, kLevels)),
        grid(grid_of("diffusion_solve", checked_grid(op, state, nodes, operands, given), state.device(), sums)) {
    x = dense(state, type);
    for (int i = 0; i < kCoefficients; ++i) coefficients[i] = nodes.get(i)->to(sums).resolve_neg().contiguous();
    for (int i = kIndptr; i < kSource; ++i) {
      const at::Tensor part = *operands.get(i - kCoefficients);
      if (i != kValues) parts[i] = part.contiguous();
    }
    values = dense(*operands.get(kValues - kCoefficients), type);
    const std::optional<at::Tensor> given_source = operands.get(kSource - kCoefficients);
    if (given_source.has_value()) source = dense(*given_source, type);
    const std::optional<at::Tensor> matrix = operands.get(kMixing - kCoefficients);
    if (matrix.has_value()) {
      const int64_t columns = x.size(1);
      TORCH_CHECK(matrix->sizes() == at::IntArrayRef({columns, columns}) && matrix->device() == x.device(), op,
                  ": mixing of shape ", matrix->sizes(), " on ", matrix->device());
      mixing = matrix->diagonal().to(sums).resolve_neg().contiguous();
    }
    for (double weight : given.rows) rows.push_back(given.numbers[0] * weight);
    for (double weight : given.update) update.push_back(given.numbers[0] * weight);
    check();
  }

  at::Tensor maps(int64_t count) const { return at::empty({count, x.size(0), x.size(1)}, x.options()); }
  at::Tensor floats(at::IntArrayRef sizes) const { return at::empty(sizes, x.options().dtype(sums)); }
  at::Tensor bytes(int64_t count) const { return at::empty({count}, x.options().dtype(at::kByte)); }
  bool mixes() const {  // several nodes make a slot, or one not alone
    if (grid.host.slots.size() != static_cast<size_t>(grid.host.basis)) return true;
    for (size_t slot = 0; slot < grid.host.slots.size(); ++slot)
      if (grid.host.slots[slot] != BasisWeights{{static_cast<int>(slot), 1.0}}) return true;
    return false;
  }
  // maps that outlive a forward pass: states, inputs of stages, products
  int64_t states() const { return keep == Keep::steps || keep == Keep::everything ? n_steps - 1 : 0; }
  bool all() const { return keep == Keep::everything && level == Level::stage; }  // level solve keeps states alone
  int64_t kept() const { return states() + (all() ? n_steps * (2 * stages - 1) : 0); }
  cuda::DiffusionMaps kept_maps(const at::Tensor& kept) const {
    if (!kept.defined()) return {};
    const int64_t inputs = states(), products = inputs + n_steps * (stages - 1);
    return {mutable_or_null(kept.slice(0, 0, inputs)),
            all() ? mutable_or_null(kept.slice(0, inputs, products)) : nullptr,
            all() ? mutable_or_null(kept.slice(0, products)) : nullptr};
  }

  // [slot, node] of each of the coefficients
  std::vector<at::Tensor> at_slots() const {
    if (!mixes()) return {coefficients[kScale], coefficients[kDiagonal]};
    return mixed({coefficients[kScale], coefficients[kDiagonal]}, grid.count, grid.host.basis, grid.host.basis, 1);
  }
  // [basis, node] of gradients at the slots, of those that are there
  std::vector<at::Tensor> at_nodes(const std::vector<at::Tensor>& grads) const {
    if (!mixes()) return grads;
    return mixed(grads, grid.host.basis, grid.count, 1, grid.host.basis);
  }

  // fills what both passes read
  void describe(cuda::DiffusionProblem& p, const std::vector<at::Tensor>& slots) const {
    p.state = scalar_of(op, type);
    p.wide_index = parts[kIndptr].scalar_type() == at::kLong;
    p.stages = static_cast<int32_t>(stages);
    p.steps = static_cast<int32_t>(n_steps);
    p.nodes = x.size(0);
    p.features = x.size(1);
    p.edges = values.numel();
    for (int64_t s = 0; s < stages; ++s) {
      p.update[s] = update[s];
      for (int64_t j = 0; j < stages; ++j) p.rows[s][j] = rows[s * stages + j];
    }
    p.slot_list = grid.host.slot_of.data();
    p.slot_of = grid.slot_of.const_data_ptr<int32_t>();
    if (level == Level::solve) {
      const cuda::DeviceFacts device = cuda::current_device();
      p.shared_limit = device.shared_limit;
      p.processors = device.processors;
    }
    p.indptr = parts[kIndptr].const_data_ptr();
    p.indices = data_or_null(parts[kIndices]);
    p.values = data_or_null(values);
    p.scale = slots[kScale].const_data_ptr();
    p.diagonal = slots[kDiagonal].const_data_ptr();
    p.source = data_or_null(source);
    p.mixing = data_or_null(mixing);
    p.stream = c10::cuda::getCurrentCUDAStream().stream();
  }

 private:
  static TimeGrid checked_grid(const char* op, const at::Tensor& x, const OptionalTensors& nodes,
                               const OptionalTensors& operands, const SchemaArguments& given) {
    TORCH_CHECK(read_word(op, "products", given.products, kProducts) == Products::sums, op, ": products in ",
                given.products);
    const bool mixed = given.words.size() == 1 && given.words[0] == "mixing";
    TORCH_CHECK_VALUE((mixed || given.words.empty()) && given.integers.empty() && given.numbers.size() == 1, op,
                      ": words, integers, numbers: got ", given.words.size(), ", ", given.integers.size(), ", ",
                      given.numbers.size(), ", accepted: 0 or 'mixing', 0, 1");
    TORCH_CHECK(x.dim() == 2, op, ": x of ", x.dim(), " dimensions");
    TORCH_CHECK(nodes.size() == kCoefficients && operands.size() == kPlaces - kCoefficients, op, ": ", nodes.size(),
                " nodes and ", operands.size(), " operands");
    TORCH_CHECK(operands.get(kMixing - kCoefficients).has_value() == mixed, op,
                ": a matrix of mixing, or none, against what the words say");
    scalar_of(op, x.scalar_type());
    TORCH_CHECK(read_word(op, "products", given.products, kProducts) == Products::sums, op, ": products in ",
                given.products);
    TORCH_CHECK(given.stages() <= kMostStages, op, ": ", given.stages(), " stages: kernels combine at most ",
                kMostStages);
    return given.time_grid(op, nodes.get(kScale)->size(0));
  }

  void check() const {
    const int64_t n = x.size(0);
    for (const at::Tensor& nodal : coefficients)
      TORCH_CHECK(nodal.dim() == 2 && nodal.size(1) == n && nodal.size(0) == coefficients[kScale].size(0) &&
                      nodal.device() == x.device(),
                  op, ": a nodal tensor of shape ", nodal.sizes(), " on ", nodal.device());
    const at::ScalarType index = parts[kIndptr].scalar_type();
    TORCH_CHECK(index == at::kInt || index == at::kLong, op, ": indices of dtype ", index);
    for (int i = kIndptr; i < kSource; ++i) {
      if (i == kValues) continue;
      const bool starts = i == kIndptr || i == kBackIndptr;
      TORCH_CHECK(parts[i].scalar_type() == index && parts[i].numel() == (starts ? n + 1 : values.numel()) &&
                      parts[i].device() == x.device(),
                  op, ": a graph of other sizes, integers or another device");
    }
    TORCH_CHECK(values.device() == x.device(), op, ": weights of edges on ", values.device());
    TORCH_CHECK(!source.defined() || (source.sizes() == x.sizes() && source.device() == x.device()), op,
                ": a source of shape ", source.defined() ? source.sizes() : at::IntArrayRef());
  }

  std::vector<at::Tensor> mixed(const std::vector<at::Tensor>& from, int64_t count, int64_t terms, int64_t row_stride,
                                int64_t term_stride) const {
    cuda::DiffusionMix p{};
    p.sums = scalar_of(op, sums);
    p.rows = static_cast<int32_t>(count);
    p.terms = static_cast<int32_t>(terms);
    p.row_stride = row_stride;
    p.term_stride = term_stride;
    p.nodes = x.size(0);
    p.mix = grid.mix.const_data_ptr();
    p.stream = c10::cuda::getCurrentCUDAStream().stream();
    std::vector<at::Tensor> to(from.size());
    for (size_t i = 0; i < from.size(); ++i) {
      if (!from[i].defined()) continue;
      to[i] = floats({count, x.size(0)});
      p.from[i] = from[i].const_data_ptr();
      p.to[i] = to[i].mutable_data_ptr();
    }
    if (p.from[0] != nullptr || p.from[1] != nullptr) cuda::diffusion_mix(p);
    return to;
  }

  static constexpr int kMostStages = cuda::kMostStages;
};

// A whole solve by blocks that hold columns of all nodes, if they do.
void check_slices(const char* op, const cuda::DiffusionProblem& p, int64_t bytes) {
  const std::string refusal = cuda::slice_refusal(p.nodes, bytes, p.shared_limit);
  TORCH_CHECK_VALUE(refusal.empty(), op, ": level: got 'solve', accepted: 'stage': ", refusal);
}

using Results = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;

Results solve(const at::Tensor& x, const OptionalTensors& nodes, const OptionalTensors& operands,
              std::vector<std::string> words, at::IntArrayRef integers, at::ArrayRef<double> numbers, bool training,
              at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights, at::ArrayRef<double> rows,
              at::ArrayRef<double> update, int64_t n_steps, std::string keep, std::string level, std::string products,
              bool return_steps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments a(
      kOp, x, nodes, operands,
      {words, integers, numbers, training, counts, cells, weights, rows, update, n_steps, keep, level, products});
  const int64_t launched = cuda::launch_count();
  const at::Tensor kept = a.maps(a.kept());
  const at::Tensor steps = return_steps ? a.maps(n_steps + 1) : at::Tensor();
  const at::Tensor y = return_steps ? steps[n_steps] : a.maps(1)[0];
  if (x.numel() > 0) {
    const std::vector<at::Tensor> slots = a.at_slots();
    cuda::DiffusionSolve p{};
    a.describe(p, slots);
    p.x = a.x.const_data_ptr();
    p.y = y.mutable_data_ptr();
    p.kept = a.kept_maps(kept);
    if (return_steps) {
      at::Tensor(steps[0]).copy_(a.x);
      p.kept.states = mutable_or_null(steps.slice(0, 1, n_steps));
    }
    const bool whole = a.level == Level::solve;
    if (whole) check_slices(kOp, p, a.x.element_size());
    const at::Tensor workspace = a.bytes(whole ? cuda::plan_diffusion_slices(p) : cuda::plan_diffusion_solve(p));
    p.workspace = mutable_or_null(workspace);
    whole ? cuda::diffusion_slices(p) : cuda::diffusion_solve(p);
    if (return_steps && a.states() > 0) kept.slice(0, 0, a.states()).copy_(steps.slice(0, 1, n_steps));
  }
  record("diffusion_solve", "cuda", word_of(a.level, kLevels), static_cast<int>(cuda::launch_count() - launched));
  return {return_steps ? steps : like(x, y), at::empty({0, 0, 0}, x.options()), {kept}};
}

std::vector<at::Tensor> solve_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensors& nodes,
                                       const OptionalTensors& operands, std::vector<std::string> words,
                                       at::IntArrayRef integers, at::ArrayRef<double> numbers, bool training,
                                       at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights,
                                       at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps,
                                       std::string keep, std::string level, std::string products, at::TensorList saved,
                                       at::IntArrayRef wanted) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Arguments a(
      kBackwardOp, x, nodes, operands,
      {words, integers, numbers, training, counts, cells, weights, rows, update, n_steps, keep, level, products});
  TORCH_CHECK(saved.size() == 1 && saved[0].dim() == 3 && saved[0].size(0) == a.kept(), kBackwardOp,
              ": other saved maps than ", a.kept());
  TORCH_CHECK(grad.dim() == 2 ? grad.sizes() == x.sizes() : grad.dim() == 3 && grad.size(0) == n_steps + 1, kBackwardOp,
              ": a gradient of shape ", grad.sizes());
  const int64_t launched = cuda::launch_count();
  bool whole = a.level == Level::solve;
  at::Tensor found[kPlaces], x_grad = a.maps(1)[0];
  for (int64_t place : wanted) {
    TORCH_CHECK(place == kScale || place == kDiagonal || place == kValues || (place == kSource && a.source.defined()) ||
                    (place == kMixing && a.mixing.defined()),
                kBackwardOp, ": no gradient of tensor ", place);
    found[place] = place < kCoefficients ? a.floats({a.grid.count, x.size(0)})
                   : place == kValues    ? a.floats({a.values.numel()})
                   : place == kMixing    ? a.floats({x.size(1), x.size(1)})
                                         : a.floats(x.sizes());
    // of an edge its source's input is wanted too, of mixing every two columns: level stage has both
    whole = whole && place != kValues && place != kMixing;
  }
  if (x.numel() > 0) {
    const std::vector<at::Tensor> slots = a.at_slots();
    const at::Tensor upstream = dense(grad, a.type), kept = dense(saved[0], a.type);
    cuda::DiffusionBackward p{};
    a.describe(p, slots);
    p.back_indptr = a.parts[kBackIndptr].const_data_ptr();
    p.back_indices = data_or_null(a.parts[kBackIndices]);
    p.back_places = data_or_null(a.parts[kBackPlaces]);
    p.x = a.x.const_data_ptr();
    p.kept = a.kept_maps(kept);
    p.grad = upstream.const_data_ptr();
    p.by_step = upstream.dim() == 3;
    p.slots = a.grid.count;
    p.grad_x = x_grad.mutable_data_ptr();
    p.grad_scale = mutable_or_null(found[kScale]);
    p.grad_diagonal = mutable_or_null(found[kDiagonal]);
    p.grad_values = mutable_or_null(found[kValues]);
    p.grad_source = mutable_or_null(found[kSource]);
    p.grad_mixing = mutable_or_null(found[kMixing]);
    if (whole) check_slices(kBackwardOp, p, a.x.element_size());
    const at::Tensor workspace =
        a.bytes(whole ? cuda::plan_diffusion_slices_backward(p) : cuda::plan_diffusion_backward(p));
    p.workspace = mutable_or_null(workspace);
    whole ? cuda::diffusion_slices_backward(p) : cuda::diffusion_backward(p);
    const std::vector<at::Tensor> at_nodes = a.at_nodes({found[kScale], found[kDiagonal]});
    std::copy(at_nodes.begin(), at_nodes.end(), found);
  }
  record("diffusion_solve_backward", "cuda", whole ? "solve" : "stage",
         static_cast<int>(cuda::launch_count() - launched));
  std::vector<at::Tensor> results{like(x, x_grad)};
  for (int64_t place : wanted) {
    const at::Tensor given = place < kCoefficients ? *nodes.get(place) : *operands.get(place - kCoefficients);
    results.push_back(x.numel() > 0 ? found[place].to(given.scalar_type()) : at::zeros_like(given));
  }
  return results;
}

}  // namespace
}  // namespace contnet_fast::graphs

TORCH_LIBRARY_IMPL(contnet_fast, CUDA, m) {
  m.impl(contnet_fast::graphs::kOp, TORCH_FN(contnet_fast::graphs::solve));
  m.impl(contnet_fast::graphs::kBackwardOp, TORCH_FN(contnet_fast::graphs::solve_backward));
}
