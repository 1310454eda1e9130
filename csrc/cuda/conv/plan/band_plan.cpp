#include "cuda/conv/plan/band_plan.h"

#include <algorithm>

#include "cuda/conv/workspace.h"

namespace contnet_fast::cuda {

BandPlan plan_band(const ConvProblem& p, bool back, int64_t rest) {
  BandPlan b{};
  const int bytes = p.operand == Scalar::f32 ? 4 : 2, c = p.channels;
  // 16 channels: 64 pixels a warp. Wide and 16-bit: 64 x 32, whose fragments are the fewest bytes a product; else 32 x
  // 32
  b.m = c <= 16 || (c > 64 && bytes == 2) ? 4 : 2;
  b.n = c <= 16 ? 2 : 4;
  b.warps_n = c <= 32 ? 1 : c <= 64 || bytes == 4 ? 2 : 4;
  const int width = b.warps_n * 8 * b.n, piece = b.n == 2 ? 16 : 32, most = kBandThreads / 32 / b.warps_n * 16 * b.m;
  b.height = p.height;
  b.width = p.width;
  b.channels = c;
  b.blocks_n = (c + width - 1) / width;
  b.piece = piece;
  b.depth = (c + piece - 1) / piece * piece;
  b.pixel = b.depth + 16 / bytes;
  b.row = back ? piece + 16 / bytes : width + 8;
  const int tap = (back ? width : piece) * b.row * bytes;
  b.taps = b.depth == piece && 9 * tap <= kBandWeightBytes ? 9 : 3 * tap <= kBandWeightBytes ? 3 : 1;
  b.pieces = b.depth / piece * 9 / b.taps;
  b.piece_bytes = b.taps * tap;
  b.columns = std::min(p.width, most);
  b.rows = std::max(1, std::min(p.height, most / b.columns));
  for (;;) {
    b.down = (p.height + b.rows - 1) / b.rows;
    b.rows = (p.height + b.down - 1) / b.down;
    b.across = (p.width + b.columns - 1) / b.columns;
    b.columns = (p.width + b.across - 1) / b.across;
    b.warps_m = (b.rows * b.columns + 16 * b.m - 1) / (16 * b.m);
    b.line = (b.columns + 2) * b.pixel;
    const int tile = (b.rows + 2) * b.line * bytes, sums = 4 * b.warps_m * 32 * (width + 8);
    const int columns = 4 * std::max(column_scratch(b.threads(), width * bytes / 16, 3 * 16 / bytes),
                                     column_scratch(b.threads(), c / 4, 8));
    b.weights = std::max({tile, sums, columns});
    b.end = b.weights + std::min(b.pieces, 2) * b.piece_bytes;
    if (b.end + rest <= p.shared_limit) break;
    if (b.rows == 1 && b.columns == 1) return BandPlan{};
    (b.rows > 1 ? b.rows : b.columns) = ((b.rows > 1 ? b.rows : b.columns) + 1) / 2;
  }
  b.bands = p.images * b.down * b.across;
  const int at_most = std::max(1, 2 * p.processors);  // rows of partials, which every block of the next launch reads
  b.each = (b.bands + at_most - 1) / at_most;
  b.blocks = (b.bands + b.each - 1) / b.each;
  return b;
}

const char* stage_refusal(const ConvProblem& p) {
  if (p.channels % 8 != 0 || p.channels < 8 || p.channels > kMostChannels)
    return "channels must be a multiple of 8 up to 256";
  if (p.stages < 1 || p.stages > kMostStages || p.steps < 1)
    return "schemes have 1 to 13 stages, solves 1 step or more";
  if (p.operand == Scalar::f64) return "operands are bfloat16, float16 or float32";
  if (p.state != p.operand && p.state != Scalar::f32) return "the state has the dtype of the operands, or float32";
  if (p.norm == Norm::sample) return "statistics are taken within an image: level solve serves that";
  if (pixels_of(p) * p.channels >= int64_t{1} << 40 || p.images * (int64_t{1} * p.height * p.width) >= int64_t{1} << 31)
    return "a map of the batch has fewer than 2^31 pixels";
  return nullptr;
}

}  // namespace contnet_fast::cuda
