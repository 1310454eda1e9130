// What Python asks of the plans of kernels: limits, blocks and shared memory. Also in builds without CUDA.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bind/plans.h"
#include "cuda/conv/plan/band_plan.h"
#include "cuda/conv/plan/conv_layout.h"
#include "cuda/conv/plan/solve_backward_plan.h"
#include "cuda/conv/plan/weight_plan.h"
#include "runtime/time_grid.h"

namespace contnet_fast {
namespace {

namespace py = pybind11;
using namespace pybind11::literals;

// The sizes that plans depend on. Operands of two bytes stand for both 16-bit types.
cuda::ConvProblem problem(int batch, int channels, int height, int width, int operand_bytes, int stages) {
  cuda::ConvProblem p{};
  p.operand = p.state = p.vectors = operand_bytes == 4 ? cuda::Scalar::f32 : cuda::Scalar::bf16;
  p.norm = cuda::Norm::known;
  p.images = batch;
  p.channels = p.group = channels;
  p.height = height;
  p.width = width;
  p.stages = stages;
  p.steps = p.slots = 1;
  return p;
}

py::dict plan_solve(int channels, int height, int width, int operand_bytes, bool sample, int stages,
                    int64_t shared_limit, int cluster_limit) {
  cuda::ConvProblem p = problem(1, channels, height, width, operand_bytes, stages);
  if (sample) p.norm = cuda::Norm::sample;
  p.shared_limit = shared_limit;
  p.cluster_limit = cluster_limit;
  const cuda::SolvePlan plan = cuda::plan_solve(p);
  py::dict found("refusal"_a = plan.refusal);
  if (plan.channels == 0) return found;
  const cuda::ConvLayout layout{plan.channels, operand_bytes, plan.wide != 0};
  const int row_pixels = 16 * layout.m(), warps_m = (plan.rows * width + row_pixels - 1) / row_pixels;
  cuda::ConvSolveBackward back{};
  static_cast<cuda::ConvProblem&>(back) = p;
  back.processors = 1;
  const cuda::SolveBackwardPlan backward = cuda::plan_solve_backward(back);
  found["channels"] = plan.channels;
  found["wide"] = plan.wide != 0;
  found["cluster"] = plan.cluster;
  found["rows"] = plan.rows;
  found["tiles"] = plan.tiles;
  found["m"] = layout.m();
  found["n"] = layout.n();
  found["taps"] = layout.taps();
  found["pieces"] = plan.chunks;
  found["warps_m"] = warps_m;
  found["warps"] = warps_m * layout.warps_n();
  found["most_warps"] = cuda::kMostThreads / 32;
  found["shared"] = plan.shared;
  found["shared_backward"] = backward.shared;
  found["refusal_backward"] = backward.refusal;
  return found;
}

py::dict plan_convolution(int batch, int channels, int height, int width, int operand_bytes, bool back,
                          int64_t shared_limit, int processors) {
  cuda::ConvProblem p = problem(batch, channels, height, width, operand_bytes, 1);
  p.shared_limit = shared_limit;
  p.processors = processors;
  const cuda::BandPlan b = back ? cuda::plan_data_gradient(p) : cuda::plan_convolution(p);
  return py::dict("rows"_a = b.rows, "columns"_a = b.columns, "bands"_a = b.bands, "per_block"_a = b.each,
                  "blocks"_a = b.blocks, "blocks_n"_a = b.blocks_n, "m"_a = b.m, "n"_a = b.n, "warps_m"_a = b.warps_m,
                  "warps_n"_a = b.warps_n, "depth"_a = b.depth, "pieces"_a = b.pieces, "end"_a = b.end,
                  "shared"_a = b.end + (back ? cuda::kGradientBytes : cuda::stage_vectors(b)));
}

py::dict plan_weights(int batch, int channels, int height, int width, int operand_bytes, int stages, int processors) {
  cuda::ConvProblem p = problem(batch, channels, height, width, operand_bytes, stages);
  p.processors = processors;
  const cuda::WeightPlan w = cuda::plan_weights(p);
  return py::dict("inputs"_a = w.tile.i, "outputs"_a = w.tile.o, "rows"_a = w.rows, "columns"_a = w.columns,
                  "depth"_a = w.depth, "units"_a = w.units, "per_block"_a = (w.units + w.splits - 1) / w.splits,
                  "splits"_a = w.splits, "blocks"_a = w.blocks_i * w.blocks_o, "threads"_a = 32 * w.tile.warps(),
                  "shared"_a = w.shared);
}

py::object stage_refusal(int batch, int channels, int height, int width, bool sample) {
  cuda::ConvProblem p = problem(batch, channels, height, width, 2, 1);
  if (sample) p.norm = cuda::Norm::sample;
  return py::cast(cuda::stage_refusal(p));
}

std::pair<std::vector<int32_t>, std::vector<BasisWeights>> slots_of(const std::vector<int64_t>& counts,
                                                                    const std::vector<int64_t>& cells,
                                                                    const std::vector<double>& weights, int64_t basis) {
  if (cells.size() != weights.size()) throw std::invalid_argument("cells and weights are of different lengths");
  const TimeGrid grid =
      resolve_time_grid(counts.data(), counts.size(), cells.data(), weights.data(), cells.size(), basis);
  return {grid.slot_of, grid.slots};
}

}  // namespace

void register_plans(py::module_& m) {
  m.def("plan_solve", &plan_solve, "What a block of a whole solve takes, forward and backward.", py::kw_only(),
        "channels"_a, "height"_a, "width"_a, "operand_bytes"_a, "sample"_a, "stages"_a, "shared_limit"_a,
        "cluster_limit"_a);
  m.def("plan_convolution", &plan_convolution, "What a convolution of level stage takes, or its gradient by the input.",
        py::kw_only(), "batch"_a, "channels"_a, "height"_a, "width"_a, "operand_bytes"_a, "back"_a, "shared_limit"_a,
        "processors"_a);
  m.def("plan_weights", &plan_weights, "How gradients by weights are shared at level stage.", py::kw_only(), "batch"_a,
        "channels"_a, "height"_a, "width"_a, "operand_bytes"_a, "stages"_a, "processors"_a);
  m.def("stage_refusal", &stage_refusal, "Why level stage serves no such maps, or None.", py::kw_only(), "batch"_a,
        "channels"_a, "height"_a, "width"_a, "sample"_a);
  m.def("column_scratch", &cuda::column_scratch, "Floats of shared memory that sums over the threads of a column take.",
        "threads"_a, "groups"_a, "values"_a);
  m.def("slots_of", &slots_of, "(slot of each evaluation, basis weights of each slot) of a time grid.", "counts"_a,
        "cells"_a, "weights"_a, "basis"_a);
}

}  // namespace contnet_fast
