// Registers the CUDA implementation of attention along the edges of a graph: tensors in, cuda/graph/attention_launch.h
// called.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "bind/device_tensors.h"
#include "bind/leaves.h"
#include "cuda/graph/attention_launch.h"
#include "runtime/runs.h"

namespace contnet_fast::graphs {
namespace {

constexpr const char *kAttentionOp = "graph_attention_cuda", *kAttentionBackwardOp = "graph_attention_backward_cuda";

// Places of the tensors of a graph (contnet_fast/graphs/products.py, Rows), and of the tensors with gradients.
enum EdgePart { kRowStarts, kRowIndices, kBackStarts, kBackTargets, kPlacesOfBack, kEdgeParts };
enum Given { kTargets, kSources, kStates, kGiven };

// The arguments of both ops, checked, dense and of one type: that of all of them, or the type of their sums.
struct AttentionArguments {
  const char* op;
  at::ScalarType type, sums;
  at::Tensor given[kGiven], factors;
  std::vector<at::Tensor> edges;
  double slope;

  AttentionArguments(const char* op, const at::Tensor& targets, const at::Tensor& sources,
                     const std::optional<at::Tensor>& states, const std::optional<at::Tensor>& given_factors,
                     at::TensorList graph, double slope)
      : op(op), type(targets.scalar_type()), slope(slope) {
    if (states.has_value() && states->scalar_type() != type)
      type = type == at::kDouble || states->scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    sums = sum_type(type);
    scalar_of(op, type);
    given[kTargets] = dense(targets, type);
    given[kSources] = dense(sources, type);
    if (states.has_value()) given[kStates] = dense(*states, type);
    if (given_factors.has_value()) factors = dense(*given_factors, sums);
    for (const at::Tensor& part : graph) edges.push_back(part.contiguous());
    check();
  }

  int64_t nodes() const { return given[kTargets].size(0); }
  int64_t heads() const { return given[kTargets].size(1); }
  const at::Tensor& states() const { return given[kStates]; }
  bool empty() const { return given[kTargets].numel() == 0 || (states().defined() && states().numel() == 0); }
  std::vector<int64_t> result_sizes() const {
    return states().defined() ? states().sizes().vec() : std::vector<int64_t>{edges[kRowIndices].numel()};
  }
  at::TensorOptions options() const { return given[kTargets].options(); }

  void describe(cuda::GraphAttention& p) const {
    p.type = scalar_of(op, type);
    p.wide_index = edges[kRowStarts].scalar_type() == at::kLong;
    p.shared = !states().defined() || states().dim() == 2;
    p.nodes = nodes();
    p.edges = edges[kRowIndices].numel();
    p.heads = heads();
    p.depth = given[kTargets].dim() == 3 ? given[kTargets].size(2) : 0;
    p.features = states().defined() ? states().size(-1) : 0;
    p.slope = slope;
    p.targets = given[kTargets].const_data_ptr();
    p.sources = given[kSources].const_data_ptr();
    p.states = data_or_null(states());
    p.factors = data_or_null(factors);
    p.indptr = edges[kRowStarts].const_data_ptr();
    p.indices = data_or_null(edges[kRowIndices]);
    p.stream = c10::cuda::getCurrentCUDAStream().stream();
  }

 private:
  void check() const {
    const at::Tensor& targets = given[kTargets];
    TORCH_CHECK((targets.dim() == 2 || targets.dim() == 3) && targets.sizes() == given[kSources].sizes(), op,
                ": targets and sources of shapes ", targets.sizes(), " and ", given[kSources].sizes());
    TORCH_CHECK(edges.size() == kEdgeParts, op, ": ", edges.size(), " tensors of a graph");
    const at::ScalarType index = edges[kRowStarts].scalar_type();
    TORCH_CHECK(index == at::kInt || index == at::kLong, op, ": indices of dtype ", index);
    const int64_t count = edges[kRowIndices].numel();
    for (int k = 0; k < kEdgeParts; ++k) {
      const bool starts = k == kRowStarts || k == kBackStarts;
      TORCH_CHECK(edges[k].scalar_type() == index && edges[k].numel() == (starts ? nodes() + 1 : count) &&
                      edges[k].device() == targets.device(),
                  op, ": a graph of other sizes, integers or another device");
    }
    TORCH_CHECK(!states().defined() || (states().size(0) == nodes() &&
                                        (states().dim() == 2 || (states().dim() == 3 && states().size(1) == heads()))),
                op, ": states of another shape than targets ", targets.sizes());
    TORCH_CHECK(!factors.defined() || (factors.dim() == 2 && factors.size(0) == count && factors.size(1) == heads()),
                op, ": factors of another shape than ", count, " edges and ", heads(), " heads");
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> attention(const at::Tensor& targets, const at::Tensor& sources,
                                                         const std::optional<at::Tensor>& states,
                                                         const std::optional<at::Tensor>& factors, at::TensorList graph,
                                                         double slope) {
  const c10::cuda::CUDAGuard guard(targets.device());
  const AttentionArguments a(kAttentionOp, targets, sources, states, factors, graph, slope);
  const int64_t launched = cuda::launch_count();
  const at::Tensor y = a.empty() ? at::zeros(a.result_sizes(), a.options()) : at::empty(a.result_sizes(), a.options());
  const at::Tensor largest = at::empty({a.nodes(), a.heads()}, a.options().dtype(a.sums)),
                   sums = at::empty_like(largest);
  if (!a.empty()) {
    cuda::GraphAttention p{};
    a.describe(p);
    p.y = mutable_or_null(y);
    p.largest = largest.mutable_data_ptr();
    p.sums = sums.mutable_data_ptr();
    const at::Tensor workspace = at::empty({cuda::plan_graph_attention(p)}, a.options().dtype(at::kByte));
    p.workspace = mutable_or_null(workspace);
    cuda::graph_attention(p);
  }
  record("graph_attention", "cuda", "stage", static_cast<int>(cuda::launch_count() - launched));
  const at::ScalarType own = (states.has_value() ? *states : targets).scalar_type();
  return {y.to(own), largest, sums};
}

std::vector<at::Tensor> attention_backward(const at::Tensor& grad, const at::Tensor& targets, const at::Tensor& sources,
                                           const std::optional<at::Tensor>& states,
                                           const std::optional<at::Tensor>& factors, at::TensorList graph, double slope,
                                           const at::Tensor& largest, const at::Tensor& sums, at::IntArrayRef wanted) {
  const c10::cuda::CUDAGuard guard(targets.device());
  const AttentionArguments a(kAttentionBackwardOp, targets, sources, states, factors, graph, slope);
  const int64_t launched = cuda::launch_count();
  TORCH_CHECK(grad.sizes() == at::IntArrayRef(a.result_sizes()), kAttentionBackwardOp, ": a gradient of shape ",
              grad.sizes());
  TORCH_CHECK(largest.scalar_type() == a.sums && sums.scalar_type() == a.sums &&
                  largest.numel() == a.nodes() * a.heads() && sums.numel() == largest.numel(),
              kAttentionBackwardOp, ": other maxima and sums than of forward");
  at::Tensor found[kGiven];
  for (int64_t place : wanted) {
    TORCH_CHECK(place >= 0 && place < kGiven && a.given[place].defined(), kAttentionBackwardOp,
                ": no gradient of tensor ", place);
    found[place] = a.empty() ? at::zeros_like(a.given[place]) : at::empty_like(a.given[place]);
  }
  if (!a.empty() && !wanted.empty()) {
    const at::Tensor upstream = dense(grad, a.type), most = largest.contiguous(), totals = sums.contiguous();
    cuda::GraphAttentionBackward p{};
    a.describe(p);
    p.given_largest = most.const_data_ptr();
    p.given_sums = totals.const_data_ptr();
    p.back_indptr = a.edges[kBackStarts].const_data_ptr();
    p.back_indices = data_or_null(a.edges[kBackTargets]);
    p.back_places = data_or_null(a.edges[kPlacesOfBack]);
    p.grad = data_or_null(upstream);
    p.grad_targets = mutable_or_null(found[kTargets]);
    p.grad_sources = mutable_or_null(found[kSources]);
    p.grad_states = mutable_or_null(found[kStates]);
    const at::Tensor workspace = at::empty({cuda::plan_graph_attention_backward(p)}, a.options().dtype(at::kByte));
    p.workspace = mutable_or_null(workspace);
    cuda::graph_attention_backward(p);
  }
  record("graph_attention_backward", "cuda", "stage", static_cast<int>(cuda::launch_count() - launched));
  std::vector<at::Tensor> results;
  for (int64_t place : wanted) {
    const at::Tensor& own = place == kStates ? *states : place == kTargets ? targets : sources;
    results.push_back(found[place].to(own.scalar_type()));
  }
  return results;
}

}  // namespace
}  // namespace contnet_fast::graphs

TORCH_LIBRARY_IMPL(contnet_fast, CUDA, m) {
  m.impl(contnet_fast::graphs::kAttentionOp, TORCH_FN(contnet_fast::graphs::attention));
  m.impl(contnet_fast::graphs::kAttentionBackwardOp, TORCH_FN(contnet_fast::graphs::attention_backward));
}
