// Registers the C++ implementation of whole solves of the diffusion field of a graph.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bind/diffusion_places.h"
#include "bind/schema_arguments.h"
#include "cpu/graph/graph_solve.h"
#include "runtime/isa.h"
#include "runtime/runs.h"
#include "runtime/working_tensor.h"

namespace contnet_fast {
namespace {

constexpr const char *kOp = "diffusion_solve_cpu", *kBackwardOp = "diffusion_solve_backward_cpu";

template <typename T, typename I>
const GraphKernels<T, I>& choose_kernels(int width) {
#ifdef CONTNET_FAST_X86
  if (instruction_set() >= Isa::avx512) return avx512::graph_kernels<T, I>(width);
  if (instruction_set() == Isa::avx2) return avx2::graph_kernels<T, I>(width);
#endif
  return portable::graph_kernels<T, I>(width);
}

at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// The arguments of both ops, checked, as contiguous tensors of the type that is computed in.
struct Arguments {
  GraphSpec spec{};
  at::ScalarType type;
  at::Tensor x, scale, diagonal, values, source, mixing;
  at::Tensor indptr, indices, back_indptr, back_indices, back_places;

  Arguments(const char* op, const at::Tensor& state, const OptionalTensors& nodes, const OptionalTensors& operands,
            const SchemaArguments& given) {
    const bool mixed = given.words.size() == 1 && given.words[0] == "mixing";
    TORCH_CHECK((mixed || given.words.empty()) && given.integers.empty() &&
                    (given.numbers.size() == 1 || given.numbers.size() > 4),
                op, ": words, integers, numbers: got ", given.words.size(), ", ", given.integers.size(), ", ",
                given.numbers.size(), ", accepted: 0 or 'mixing', 0, 1 or more than 4");
    TORCH_CHECK(state.dim() == 2, op, ": x of ", state.dim(), " dimensions");
    TORCH_CHECK(nodes.size() == kCoefficients && operands.size() == kPlaces - kCoefficients, op, ": ", nodes.size(),
                " nodes and ", operands.size(), " operands");
    spec.by_stage = read_word(op, "level", given.level, kLevels) == Level::stage;
    TORCH_CHECK(read_word(op, "products", given.products, kProducts) == Products::sums, op, ": products in ",
                given.products);
    type = compute_type(state);
    x = plain(state);
    scale = plain(*nodes.get(kScale));
    diagonal = plain(*nodes.get(kDiagonal));
    values = plain(*operands.get(kValues - kCoefficients));
    if (operands.get(kSource - kCoefficients).has_value()) source = plain(*operands.get(kSource - kCoefficients));
    if (mixed) mixing = plain(*operands.get(kMixing - kCoefficients));
    indptr = operands.get(kIndptr - kCoefficients)->contiguous();
    indices = operands.get(kIndices - kCoefficients)->contiguous();
    back_indptr = operands.get(kBackIndptr - kCoefficients)->contiguous();
    back_indices = operands.get(kBackIndices - kCoefficients)->contiguous();
    back_places = operands.get(kBackPlaces - kCoefficients)->contiguous();
    check(op);
    spec.nodes = x.size(0);
    spec.columns = x.size(1);
    spec.width = slice_width(spec.columns, type == at::kDouble ? 8 : 4);
    spec.n_steps = static_cast<int>(given.n_steps);
    spec.stages = static_cast<int>(given.stages());
    spec.keep = read_word(op, "keep", given.keep, kKeeps);
    spec.grid = given.time_grid(op, scale.size(0));
    TORCH_CHECK(spec.stages <= limits::MOST_STAGES, op, ": ", spec.stages, " stages: kernels combine at most ",
                limits::MOST_STAGES);
    const double t_end = given.numbers[0];
    if (given.numbers.size() > 1) {
      spec.low = given.numbers[1];
      spec.high = given.numbers[2];
      for (double term : given.numbers.slice(3)) spec.terms.push_back(t_end * term);
      TORCH_CHECK(scale.size(0) == 1, op, ": an expansion with ", scale.size(0), " basis functions");
    }
    for (int s = 0; s < spec.stages; ++s) {
      spec.rows.emplace_back();
      for (int j = 0; j < spec.stages; ++j) spec.rows[s].push_back(t_end * given.rows[s * spec.stages + j]);
      spec.update.push_back(t_end * given.update[s]);
    }
  }

  template <typename T, typename I>
  Graph<T, I> graph() const {
    return {indptr.const_data_ptr<I>(), indices.const_data_ptr<I>(), values.const_data_ptr<T>()};
  }
  template <typename T>
  static const T* data(const at::Tensor& t) {
    return t.defined() ? t.const_data_ptr<T>() : nullptr;
  }

 private:
  at::Tensor plain(const at::Tensor& t) const { return t.to(type).resolve_neg().contiguous(); }

  void check(const char* op) const {
    const int64_t n = x.size(0), edges = values.numel();
    for (const at::Tensor* nodal : {&scale, &diagonal})
      TORCH_CHECK(nodal->dim() == 2 && nodal->size(1) == n && nodal->size(0) == scale.size(0), op,
                  ": a nodal tensor of shape ", nodal->sizes());
    for (const at::Tensor* part : {&indptr, &indices, &back_indptr, &back_indices, &back_places}) {
      const bool starts = part == &indptr || part == &back_indptr;
      TORCH_CHECK(part->scalar_type() == indptr.scalar_type() && part->numel() == (starts ? n + 1 : edges), op,
                  ": a graph of other sizes or integers");
    }
    for (const at::Tensor* starts : {&indptr, &back_indptr})
      TORCH_CHECK(starts->select(0, n).item<int64_t>() == edges, op, ": a graph of other sizes");
    TORCH_CHECK(!source.defined() || source.sizes() == x.sizes(), op, ": a source of shape ", source.sizes());
    const int64_t columns = x.size(1);
    TORCH_CHECK(!mixing.defined() || mixing.sizes() == at::IntArrayRef({columns, columns}), op, ": mixing of shape ",
                mixing.sizes());
  }
};

// Calls f(T, I), values of the types of numbers and indices.
template <typename F>
void dispatch(const Arguments& a, const F& f) {
  AT_DISPATCH_FLOATING_TYPES(a.type, kOp, [&] {
    if (a.indptr.scalar_type() == at::kInt)
      f(scalar_t{}, int32_t{});
    else
      f(scalar_t{}, int64_t{});
  });
}

using Results = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;

Results solve(const at::Tensor& x, const OptionalTensors& nodes, const OptionalTensors& operands,
              std::vector<std::string> words, at::IntArrayRef integers, at::ArrayRef<double> numbers, bool training,
              at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights, at::ArrayRef<double> rows,
              at::ArrayRef<double> update, int64_t n_steps, std::string keep, std::string level, std::string products,
              bool return_steps) {
  record("diffusion_solve", "cpu", level.c_str());
  const Arguments a(
      kOp, x, nodes, operands,
      {words, integers, numbers, training, counts, cells, weights, rows, update, n_steps, keep, level, products});
  const GraphSpec& spec = a.spec;
  TORCH_CHECK(spec.terms.empty() || !return_steps, kOp, ": an expansion has no steps");
  const auto options = a.x.options();
  const at::Tensor y = return_steps ? at::empty({n_steps + 1, spec.nodes, spec.columns}, options)
                                    : at::empty({spec.nodes, spec.columns}, options);
  const std::vector<int64_t> maps{spec.slices(), spec.kept_maps(), spec.nodes, spec.width};
  const at::Tensor kept = working_tensor(maps, c10::contiguous_strides(maps), a.type);
  dispatch(a, [&](auto t, auto index) {
    using T = decltype(t);
    using I = decltype(index);
    GraphForward<T, I> call{a.graph<T, I>(),
                            a.data<T>(a.x),
                            a.data<T>(a.scale),
                            a.data<T>(a.diagonal),
                            a.data<T>(a.source),
                            a.data<T>(a.mixing),
                            {},
                            kept.mutable_data_ptr<T>()};
    T* out = y.mutable_data_ptr<T>();
    for (int64_t i = 0; i <= (return_steps ? n_steps : 0); ++i) call.out.push_back(out + i * x.numel());
    const auto run = spec.terms.empty() ? graph_solve<T, I> : graph_series<T, I>;
    if (x.numel() > 0) run(spec, choose_kernels<T, I>(static_cast<int>(spec.width)), call);
  });
  // of the strides of x, as the op without data says
  at::Tensor result = y.to(x.scalar_type());
  if (!return_steps) result = at::empty_like(x).copy_(result);
  return {result, at::empty({0, 0, 0}, x.options()), {kept}};
}

std::vector<at::Tensor> solve_backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensors& nodes,
                                       const OptionalTensors& operands, std::vector<std::string> words,
                                       at::IntArrayRef integers, at::ArrayRef<double> numbers, bool training,
                                       at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights,
                                       at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps,
                                       std::string keep, std::string level, std::string products, at::TensorList saved,
                                       at::IntArrayRef wanted) {
  record("diffusion_solve_backward", "cpu", level.c_str());
  const Arguments a(
      kBackwardOp, x, nodes, operands,
      {words, integers, numbers, training, counts, cells, weights, rows, update, n_steps, keep, level, products});
  const GraphSpec& spec = a.spec;
  TORCH_CHECK(saved.size() == 1 && saved[0].dim() == 4 && saved[0].size(1) == spec.kept_maps(), kBackwardOp,
              ": other saved maps than ", spec.kept_maps());
  const at::Tensor upstream = grad.to(a.type).resolve_neg().contiguous();
  const at::Tensor x_grad = at::empty_like(a.x);
  at::Tensor by_place[kPlaces];
  for (int64_t place : wanted) {
    TORCH_CHECK(place == kScale || place == kDiagonal || place == kValues || place == kSource || place == kMixing,
                kBackwardOp, ": no gradient of tensor ", place);
    const at::Tensor& like = place == kScale      ? a.scale
                             : place == kDiagonal ? a.diagonal
                             : place == kValues   ? a.values
                             : place == kMixing   ? a.mixing
                                                  : a.source;
    by_place[place] = at::zeros_like(like);
  }
  dispatch(a, [&](auto t, auto index) {
    using T = decltype(t);
    using I = decltype(index);
    const at::Tensor back_values = a.values.index_select(0, a.back_places);
    const auto out = [&](int place) {
      return by_place[place].defined() ? by_place[place].template mutable_data_ptr<T>() : nullptr;
    };
    GraphBackward<T, I> call{};
    call.graph = a.graph<T, I>();
    call.transpose = {a.back_indptr.const_data_ptr<I>(), a.back_indices.const_data_ptr<I>(),
                      back_values.const_data_ptr<T>()};
    call.x = a.data<T>(a.x);
    call.scale = a.data<T>(a.scale);
    call.diagonal = a.data<T>(a.diagonal);
    call.source = a.data<T>(a.source);
    call.mixing = a.data<T>(a.mixing);
    const bool steps = upstream.dim() == 3;
    const T* grads = upstream.const_data_ptr<T>();
    for (int64_t i = 0; i <= (steps ? n_steps : 0); ++i) call.out_grad.push_back(grads + i * x.numel());
    call.kept = saved[0].const_data_ptr<T>();
    call.x_grad = x_grad.mutable_data_ptr<T>();
    call.scale_grad = out(kScale);
    call.diagonal_grad = out(kDiagonal);
    call.value_grad = out(kValues);
    call.source_grad = out(kSource);
    call.mixing_grad = out(kMixing);
    const auto run = spec.terms.empty() ? graph_solve_backward<T, I> : graph_series_backward<T, I>;
    if (x.numel() > 0) run(spec, choose_kernels<T, I>(static_cast<int>(spec.width)), call);
  });
  std::vector<at::Tensor> all{at::empty_like(x).copy_(x_grad)};
  for (int64_t place : wanted) {
    const std::optional<at::Tensor> like =
        place < kCoefficients ? nodes.get(place) : operands.get(place - kCoefficients);
    all.push_back(by_place[place].to(like->scalar_type()));
  }
  return all;
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl(contnet_fast::kOp, TORCH_FN(contnet_fast::solve));
  m.impl(contnet_fast::kBackwardOp, TORCH_FN(contnet_fast::solve_backward));
}
