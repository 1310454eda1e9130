// csrc/bind/cuda_*.cpp on the emulator: their ops under the CPU key, each launch with the buffers that it says it touches.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/conv/conv_launch.h"
#include "cuda/combine/combine_launch.h"
#include "cuda/graph/attention_launch.h"
#include "cuda/graph/graph_launch.h"
#include "bind/leaves.h"
#include "runtime/runs.h"

using contnet_fast::cuda::Combine;
using contnet_fast::cuda::Scalar;

extern "C" {
void emulated_register(const char* name, void* data, int64_t bytes, bool written, bool writable);
void emulated_forget();
int64_t emulated_first_unwritten(const void* data);
const char* emulated_rk_combine(const Combine* p);
const char* emulated_conv_prepare(const contnet_fast::cuda::ConvPrepare* p);
const char* emulated_conv_stages(const contnet_fast::cuda::ConvStages* p);
const char* emulated_conv_solve_backward(const contnet_fast::cuda::ConvSolveBackward* p);
const char* emulated_conv_stages_backward(const contnet_fast::cuda::ConvStagesBackward* p);
const char* emulated_conv_solve(const contnet_fast::cuda::ConvSolve* p);
const char* emulated_error_norm(const double* partials, int64_t count, int64_t elements, void* out, int type);
const char* emulated_diffusion_solve(const contnet_fast::cuda::DiffusionSolve* p);
const char* emulated_diffusion_backward(const contnet_fast::cuda::DiffusionBackward* p);
const char* emulated_diffusion_slices(const contnet_fast::cuda::DiffusionSolve* p);
const char* emulated_diffusion_slices_backward(const contnet_fast::cuda::DiffusionBackward* p);
const char* emulated_diffusion_mix(const contnet_fast::cuda::DiffusionMix* p);
const char* planted_diffusion_solve(int fault, const contnet_fast::cuda::DiffusionSolve* p);
const char* planted_diffusion_backward(int fault, const contnet_fast::cuda::DiffusionBackward* p);
const char* planted_diffusion_slices(int fault, const contnet_fast::cuda::DiffusionSolve* p);
const char* planted_diffusion_slices_backward(int fault, const contnet_fast::cuda::DiffusionBackward* p);
const char* emulated_graph_attention(const contnet_fast::cuda::GraphAttention* p);
const char* emulated_graph_attention_backward(const contnet_fast::cuda::GraphAttentionBackward* p);
const char* planted_graph_attention(int fault, const contnet_fast::cuda::GraphAttention* p);
const char* planted_graph_attention_backward(int fault, const contnet_fast::cuda::GraphAttentionBackward* p);

static int planted = 0;  // the fault in passes on graphs; 0: they run as they are
void plant_fault(int fault) { planted = fault; }

static int launches = 0, all_launches = 0;
int launches_of_last_run() { return launches; }
int launches_of_all_runs() { return std::exchange(all_launches, 0); }  // since the last call
}

namespace contnet_fast {

void record(const char*, const char*, const char*, std::optional<int> count) { all_launches += launches = count.value_or(-1000); }

namespace cuda {

// Memory of one launch: inputs once each, however often they are passed; outputs end written.
class Buffers {
 public:
  ~Buffers() { emulated_forget(); }
  void in(const void* data, int64_t bytes) {
    if (bytes > 0 && known_.insert(data).second) emulated_register("input", const_cast<void*>(data), bytes, true, false);
  }
  void out(void* data, int64_t bytes) {
    emulated_register("output", data, bytes, false, true);
    outputs_.push_back(data);
  }
  void finish(const char* fault) {
    if (fault != nullptr) throw std::runtime_error(fault);
    for (const void* data : outputs_)
      if (emulated_first_unwritten(data) >= 0) throw std::runtime_error("an output was not written");
  }

 private:
  std::set<const void*> known_;
  std::vector<const void*> outputs_;
};

int64_t size_of(Scalar type) { return type == Scalar::f64 ? 8 : type == Scalar::f32 ? 4 : 2; }

void emulated_combine(const Combine& p) {
  Buffers buffers;
  for (int i = 0; i < p.leaves; ++i) {
    buffers.in(p.y[i], p.size[i] * size_of(p.state));
    buffers.out(p.out[i], p.size[i] * size_of(p.state));
    for (int j = 0; j < p.terms; ++j) buffers.in(p.k[i][j], p.size[i] * size_of(p.rate));
    const int64_t rest = p.size[i] * (p.state == Scalar::f64 ? 8 : 4);
    if (p.before[i] != nullptr) buffers.in(p.before[i], rest);
    if (p.after[i] != nullptr) buffers.out(p.after[i], rest);
  }
  if (p.partials != nullptr) buffers.out(p.partials, combine_blocks(p) * 8);
  buffers.finish(emulated_rk_combine(&p));
}

void emulated_norm(const double* partials, int64_t count, int64_t elements, void* out, Scalar type, void*) {
  Buffers buffers;
  buffers.in(partials, count * 8);
  buffers.out(out, size_of(type));
  buffers.finish(emulated_error_norm(partials, count, elements, out, static_cast<int>(type)));
}

int64_t map_bytes(const ConvProblem& p) { return int64_t{1} * p.images * p.height * p.width * p.channels * size_of(p.state); }
int64_t moment_bytes(const ConvProblem& p) {
  return int64_t{16} * p.stages * p.steps * p.channels * (p.norm == Norm::sample ? p.images : 1);
}
int64_t packed_bytes(const ConvProblem& p) { return int64_t{18} * p.slots * p.channels * p.channels * size_of(p.operand); }
int64_t parameter_bytes(const ConvProblem& p) { return int64_t{4} * p.slots * kParameterRows * p.channels; }

template <typename P>
void in_nodes(Buffers& buffers, const P& p) {
  for (int i = 0; i < kNodes; ++i) {
    const bool weight = i == 0 || i == 2;
    const int64_t each = weight ? 9 * p.channels * p.channels : i == kNodes - 1 ? 1 : p.channels;
    if (p.nodes[i] != nullptr) buffers.in(p.nodes[i], p.basis * each * size_of(weight ? p.operand : p.vectors));
  }
  buffers.in(p.mix, 4 * p.slots * p.basis);
  buffers.in(p.slot_of, 4 * p.stages * p.steps);
}

void emulated_prepare(const ConvPrepare& p) {
  Buffers buffers;
  in_nodes(buffers, p);
  buffers.out(p.packed, packed_bytes(p));
  buffers.out(p.parameters, parameter_bytes(p));
  if (p.moments != nullptr) buffers.out(p.moments, moment_bytes(p));
  buffers.finish(emulated_conv_prepare(&p));
}

template <typename P>
void out_grads(Buffers& buffers, const P& p) {
  for (int i = 0; i < kNodes; ++i) {
    const int64_t each = i == 0 || i == 2 ? 9 * p.channels * p.channels : i == kNodes - 1 ? 1 : p.channels;
    if (p.grads[i] != nullptr) buffers.out(p.grads[i], 4 * p.basis * each);
  }
}

void emulated_solve(const ConvSolve& p) {
  Buffers buffers;
  buffers.in(p.x, map_bytes(p));
  buffers.in(p.packed, packed_bytes(p));
  buffers.in(p.parameters, parameter_bytes(p));
  buffers.in(p.slot_of, 4 * p.stages * p.steps);
  if (p.norm == Norm::known) buffers.in(p.moments, moment_bytes(p));
  if (p.norm == Norm::sample) buffers.out(p.moments, moment_bytes(p));
  buffers.out(p.y, map_bytes(p));
  if (p.states != nullptr) buffers.out(p.states, (p.steps - 1) * map_bytes(p));
  if (p.rates != nullptr) emulated_register("rates", p.rates, plan_solve(p).scratch, false, true);
  buffers.finish(emulated_conv_solve(&p));
}

void emulated_solve_backward(const ConvSolveBackward& p) {
  Buffers buffers;
  buffers.in(p.x, map_bytes(p));
  if (p.states != nullptr) buffers.in(p.states, (p.steps - 1) * map_bytes(p));
  buffers.in(p.packed, packed_bytes(p));
  buffers.in(p.parameters, parameter_bytes(p));
  if (p.moments != nullptr) buffers.in(p.moments, moment_bytes(p));
  buffers.in(p.mix, 4 * p.slots * p.basis);
  buffers.in(p.slot_of, 4 * p.stages * p.steps);
  buffers.in(p.grad, map_bytes(p) * (p.return_steps ? p.steps + 1 : 1));
  buffers.out(p.grad_x, map_bytes(p));
  out_grads(buffers, p);
  emulated_register("workspace", p.workspace, plan_solve_backward(p).workspace, false, true);
  buffers.finish(emulated_conv_solve_backward(&p));
}

void emulated_stages(const ConvStages& p) {
  Buffers buffers;
  in_nodes(buffers, p);
  buffers.in(p.x, map_bytes(p));
  buffers.out(p.y, map_bytes(p));
  if (p.states != nullptr) buffers.out(p.states, (p.steps - 1) * map_bytes(p));
  if (p.tape != nullptr) buffers.out(p.tape, p.steps * p.stages * kinds(p) * map_bytes(p));
  if (p.moments != nullptr) buffers.out(p.moments, moment_bytes(p));
  if (p.statistics != nullptr) buffers.out(p.statistics, moment_bytes(p) / 4 * size_of(p.vectors));
  emulated_register("workspace", p.workspace, plan_stages(p).workspace, false, true);
  buffers.finish(emulated_conv_stages(&p));
}

void emulated_stages_backward(const ConvStagesBackward& p) {
  Buffers buffers;
  in_nodes(buffers, p);
  buffers.in(p.x, map_bytes(p));
  if (p.moments != nullptr) buffers.in(p.moments, moment_bytes(p));
  if (p.states != nullptr) buffers.in(p.states, (p.steps - 1) * map_bytes(p));
  if (p.tape != nullptr) buffers.in(p.tape, p.steps * p.stages * kinds(p) * map_bytes(p));
  buffers.in(p.grad, map_bytes(p) * (p.by_step ? p.steps + 1 : 1));
  buffers.out(p.grad_x, map_bytes(p));
  out_grads(buffers, p);
  emulated_register("workspace", p.workspace, plan_stages_backward(p).workspace, false, true);
  buffers.finish(emulated_conv_stages_backward(&p));
}

int64_t map_bytes(const DiffusionProblem& p) { return p.nodes * p.features * size_of(p.state); }
int64_t sum_bytes(const DiffusionProblem& p) { return p.state == Scalar::f64 ? 8 : 4; }

void in_graph(Buffers& buffers, const DiffusionProblem& p, const void* x) {
  const int64_t index = p.wide_index ? 8 : 4, count = p.steps * p.stages, last = *std::max_element(p.slot_list, p.slot_list + count);
  buffers.in(x, map_bytes(p));
  buffers.in(p.slot_of, 4 * count);
  buffers.in(p.indptr, (p.nodes + 1) * index);
  buffers.in(p.indices, p.edges * index);
  buffers.in(p.values, p.edges * size_of(p.state));
  buffers.in(p.scale, (last + 1) * p.nodes * sum_bytes(p));
  buffers.in(p.diagonal, (last + 1) * p.nodes * sum_bytes(p));
  if (p.source != nullptr) buffers.in(p.source, map_bytes(p));
  if (p.mixing != nullptr) buffers.in(p.mixing, p.features * sum_bytes(p));
}

// f(pointer, bytes) for the maps that are there
template <typename P, typename F>
void for_kept(const P& p, const F& f) {
  if (p.kept.states != nullptr) f(p.kept.states, (p.steps - 1) * map_bytes(p));
  if (p.kept.inputs != nullptr) f(p.kept.inputs, p.steps * (p.stages - 1) * map_bytes(p));
  if (p.kept.products != nullptr) f(p.kept.products, p.steps * p.stages * map_bytes(p));
}

void emulated_graph_solve(const DiffusionSolve& p) {
  Buffers buffers;
  in_graph(buffers, p, p.x);
  buffers.out(p.y, map_bytes(p));
  for_kept(p, [&](void* data, int64_t bytes) { buffers.out(data, bytes); });
  if (p.workspace != nullptr) emulated_register("workspace", p.workspace, plan_diffusion_solve(p), false, true);
  buffers.finish(planted ? planted_diffusion_solve(planted, &p) : emulated_diffusion_solve(&p));
}

void emulated_graph_slices(const DiffusionSolve& p) {
  Buffers buffers;
  in_graph(buffers, p, p.x);
  buffers.out(p.y, map_bytes(p));
  for_kept(p, [&](void* data, int64_t bytes) { buffers.out(data, bytes); });
  emulated_register("workspace", p.workspace, plan_diffusion_slices(p), false, true);
  buffers.finish(planted ? planted_diffusion_slices(planted, &p) : emulated_diffusion_slices(&p));
}

void in_and_out_of_backward(Buffers& buffers, const DiffusionBackward& p) {
  in_graph(buffers, p, p.x);
  const int64_t index = p.wide_index ? 8 : 4, slots = p.slots * p.nodes * sum_bytes(p);
  buffers.in(p.back_indptr, (p.nodes + 1) * index);
  buffers.in(p.back_indices, p.edges * index);
  buffers.in(p.back_places, p.edges * index);
  for_kept(p, [&](void* data, int64_t bytes) { buffers.in(data, bytes); });
  buffers.in(p.grad, map_bytes(p) * (p.by_step ? p.steps + 1 : 1));
  buffers.out(p.grad_x, map_bytes(p));
  if (p.grad_scale != nullptr) buffers.out(p.grad_scale, slots);
  if (p.grad_diagonal != nullptr) buffers.out(p.grad_diagonal, slots);
  if (p.grad_values != nullptr) buffers.out(p.grad_values, p.edges * sum_bytes(p));
  if (p.grad_source != nullptr) buffers.out(p.grad_source, p.nodes * p.features * sum_bytes(p));
  if (p.grad_mixing != nullptr) buffers.out(p.grad_mixing, p.features * p.features * sum_bytes(p));
}

void emulated_graph_backward(const DiffusionBackward& p) {
  Buffers buffers;
  in_and_out_of_backward(buffers, p);
  if (p.workspace != nullptr) emulated_register("workspace", p.workspace, plan_diffusion_backward(p), false, true);
  buffers.finish(planted ? planted_diffusion_backward(planted, &p) : emulated_diffusion_backward(&p));
}

void emulated_graph_slices_backward(const DiffusionBackward& p) {
  Buffers buffers;
  in_and_out_of_backward(buffers, p);
  emulated_register("workspace", p.workspace, plan_diffusion_slices_backward(p), false, true);
  buffers.finish(planted ? planted_diffusion_slices_backward(planted, &p) : emulated_diffusion_slices_backward(&p));
}

void emulated_graph_mix(const DiffusionMix& p) {
  Buffers buffers;
  buffers.in(p.mix, int64_t{1} * p.rows * p.terms * size_of(p.sums));
  for (int k = 0; k < 2; ++k) {
    if (p.from[k] == nullptr) continue;
    buffers.in(p.from[k], p.terms * p.nodes * size_of(p.sums));
    buffers.out(p.to[k], p.rows * p.nodes * size_of(p.sums));
  }
  buffers.finish(emulated_diffusion_mix(&p));
}

// what both passes read; the bytes of y, and of numbers by node and head
std::pair<int64_t, int64_t> in_attention(Buffers& buffers, const GraphAttention& p) {
  const int64_t index = p.wide_index ? 8 : 4, size = size_of(p.type), wide = p.type == Scalar::f64 ? 8 : 4;
  const int64_t scores = p.nodes * p.heads * std::max<int64_t>(p.depth, 1) * size,
                states = p.nodes * (p.shared ? 1 : p.heads) * p.features * size;
  buffers.in(p.targets, scores);
  buffers.in(p.sources, scores);
  if (p.states != nullptr) buffers.in(p.states, states);
  if (p.factors != nullptr) buffers.in(p.factors, p.edges * p.heads * wide);
  buffers.in(p.indptr, (p.nodes + 1) * index);
  buffers.in(p.indices, p.edges * index);
  return {p.features == 0 ? p.edges * size : states, p.nodes * p.heads * wide};
}

void emulated_attention(const GraphAttention& p) {
  Buffers buffers;
  const auto [y, pairs] = in_attention(buffers, p);
  if (y > 0) buffers.out(p.y, y);
  buffers.out(p.largest, pairs);
  buffers.out(p.sums, pairs);
  if (p.workspace != nullptr) emulated_register("workspace", p.workspace, plan_graph_attention(p), false, true);
  buffers.finish(planted ? planted_graph_attention(planted, &p) : emulated_graph_attention(&p));
}

void emulated_attention_backward(const GraphAttentionBackward& p) {
  Buffers buffers;
  const auto [y, pairs] = in_attention(buffers, p);
  const int64_t index = p.wide_index ? 8 : 4, scores = p.nodes * p.heads * std::max<int64_t>(p.depth, 1) * size_of(p.type);
  buffers.in(p.grad, y);
  buffers.in(p.given_largest, pairs);
  buffers.in(p.given_sums, pairs);
  buffers.in(p.back_indptr, (p.nodes + 1) * index);
  buffers.in(p.back_indices, p.edges * index);
  buffers.in(p.back_places, p.edges * index);
  if (p.grad_targets != nullptr) buffers.out(p.grad_targets, scores);
  if (p.grad_sources != nullptr) buffers.out(p.grad_sources, scores);
  if (p.grad_states != nullptr) buffers.out(p.grad_states, y);
  if (p.workspace != nullptr) emulated_register("workspace", p.workspace, plan_graph_attention_backward(p), false, true);
  buffers.finish(planted ? planted_graph_attention_backward(planted, &p) : emulated_graph_attention_backward(&p));
}

}  // namespace cuda
}  // namespace contnet_fast

#define CUDA CPU
#define rk_combine emulated_combine
#define error_norm emulated_norm
#define conv_prepare emulated_prepare
#define conv_solve emulated_solve
#define conv_solve_backward emulated_solve_backward
#define conv_stages emulated_stages
#define conv_stages_backward emulated_stages_backward
#define diffusion_solve emulated_graph_solve
#define diffusion_backward emulated_graph_backward
#define diffusion_slices emulated_graph_slices
#define diffusion_slices_backward emulated_graph_slices_backward
#define diffusion_mix emulated_graph_mix
#define graph_attention emulated_attention
#define graph_attention_backward emulated_attention_backward
#include "bind/cuda_combine.cpp"
#include "bind/cuda_conv.cpp"
#include "bind/cuda_graph.cpp"
#include "bind/cuda_attention.cpp"
