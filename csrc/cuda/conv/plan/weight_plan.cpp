#include "cuda/conv/plan/weight_plan.h"

#include <algorithm>

namespace contnet_fast::cuda {

WeightPlan plan_weights(const ConvProblem& p) {
  const WeightTile tile = p.channels <= 16   ? WeightTile{16, 16}
                          : p.channels <= 32 ? WeightTile{32, 32}
                                             : WeightTile{64, 32};
  const int bytes = p.operand == Scalar::f32 ? 4 : 2;
  const auto up = [](int x, int y) { return (x + y - 1) / y; };
  WeightPlan plan{};
  plan.tile = tile;
  plan.blocks_i = up(p.channels, tile.i);
  plan.blocks_o = up(p.channels, tile.o);
  plan.tiles_x = up(p.width, kWeightColumns);
  plan.columns = up(p.width, plan.tiles_x);
  const int fixed = 4 * (2 * tile.i + 8 * 32 * tile.warps()) + 2 * 16, line = (plan.columns + 2) * tile.pixel() * bytes;
  const int row = line + plan.columns * (tile.row() * bytes + 4), padding = 16 * (tile.row() * bytes + 4);
  const int fit = (kWeightBytes - fixed - padding - 2 * line) / row;
  plan.tiles_y = up(p.height, fit < 1 ? 1 : fit < p.height ? fit : p.height);
  plan.rows = up(p.height, plan.tiles_y);
  plan.depth = up(plan.rows * plan.columns, 16) * 16;
  plan.units = p.images * plan.tiles_x * plan.tiles_y;
  plan.biases = 4 * 2 * tile.i;
  plan.places = plan.biases + 4 * 8 * 32 * tile.warps();
  plan.operand = up(plan.places + 4 * plan.depth, 16) * 16;
  plan.gradient = up(plan.operand + (plan.rows + 2) * line, 16) * 16;
  const int64_t end = plan.gradient + plan.depth * tile.row() * bytes;
  const int64_t parts = tile.shares() > 1 ? plan.operand + 4 * 9 * tile.i * tile.o : 0;
  plan.shared = std::max(end, parts);
  const int blocks = 2 * p.stages * plan.blocks_i * plan.blocks_o;
  const int splits = std::max(1, std::min(2 * p.processors / blocks, plan.units)), each = up(plan.units, splits);
  plan.splits = up(plan.units, each);
  return plan;
}

}  // namespace contnet_fast::cuda
