// What every launch of a solve reads, mixed from the nodes: weights in the layout of the products, parameters of slots,
// moments of known norms, and statistics of the first state. Blocks in turn do one of these.

#include <algorithm>

#include "cuda/conv/columns.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256, kOutputs = 32, kInputs = 8;  // of a block's share of a convolution's weights
constexpr int kLine = 9 * kInputs + 1;                     // odd: a column of it touches every bank
constexpr int kPixels = 2048;                              // at least, of a block's share of the statistics
constexpr int64_t kBlocksEach = 2;                         // a multiprocessor

template <typename T>
struct Operands {
  Global<const unsigned char> nodes[kNodes];
  Global<const float> mix;
  Global<const int32_t> slot_of;
  Global<const unsigned char> x;
  Global<T> packed;
  Global<float> parameters, moments, partials;
  Scalar state, vectors;
  int slots, channels, basis, statistics, weights;  // blocks of the last two
  int64_t pixels, each;                             // of the batch; of a block's share of the statistics
};

// sum_k mix[slot, k] nodes[k]; basis functions of weight zero are not read
template <typename N, typename T>
DEVICE float mixed_from(const Operands<T>& p, int node, int slot, int64_t size, int64_t at) {
  const Global<const N> from = pointer_cast<const N>(p.nodes[node]);
  float sum = 0.f;
  for (int k = 0; k < p.basis; ++k) {
    const float share = p.mix[slot * p.basis + k];
    if (share != 0.f) sum += share * to_float(static_cast<N>(from[k * size + at]));
  }
  return sum;
}

// of a node that is not a convolution's weights
template <typename T>
DEVICE float mixed(const Operands<T>& p, int node, int slot, int64_t size, int64_t at) {
  return p.vectors == Scalar::f32 ? mixed_from<float>(p, node, slot, size, at) : mixed_from<T>(p, node, slot, size, at);
}

template <typename T>
DEVICE void pack_weights(const Operands<T>& p, int block) {
  const int c = p.channels, across = c / kInputs, down = (c + kOutputs - 1) / kOutputs;
  const int input = block % across * kInputs, output = block / across % down * kOutputs,
            which = block / (across * down);
  const int slot = which % p.slots, conv = which / p.slots;
  const Shared<float> tile = shared_array<float>(0, kOutputs * kLine);
  for (int e = thread_index(); e < kOutputs * 9 * kInputs; e += kThreads) {
    const int o = e / (9 * kInputs), rest = e % (9 * kInputs);
    if (output + o < c)
      tile[o * kLine + rest] = mixed_from<T>(p, kWeight1 + conv * (kWeight2 - kWeight1), slot, int64_t{9} * c * c,
                                             (static_cast<int64_t>(output + o) * c + input) * 9 + rest);
  }
  sync_threads();
  const Global<T> to = p.packed + static_cast<int64_t>(which) * 9 * c * c;
  for (int e = thread_index(); e < kOutputs * 9 * kInputs; e += kThreads) {
    const int o = e % kOutputs, i = e / kOutputs % kInputs, tap = e / (kOutputs * kInputs);
    if (output + o < c) to[(tap * c + input + i) * c + output + o] = from_float<T>(tile[o * kLine + i * 9 + tap]);
  }
}

template <typename T>
DEVICE void write_parameters(const Operands<T>& p, int slot) {
  constexpr int node[kParameterRows] = {kBias1, kBias2, kGamma1, kBeta1, kGamma2, kBeta2, kSkip};  // as kNodeOfRow
  for (int e = thread_index(); e < kParameterRows * p.channels; e += kThreads) {
    const int row = e / p.channels, c = e % p.channels;
    const bool skip = row == kRowSkip;
    float value = skip ? 1.f : 0.f;
    UNROLL
    for (int r = 0; r < kParameterRows; ++r)
      if (r == row && p.nodes[node[r]]) value = mixed(p, node[r], slot, skip ? 1 : p.channels, skip ? 0 : c);
    p.parameters[slot * kParameterRows * p.channels + e] = value;
  }
}

template <typename T>
DEVICE void write_moments(const Operands<T>& p, int evaluation) {
  const int slot = p.slot_of[evaluation];
  for (int e = thread_index(); e < 4 * p.channels; e += kThreads) {
    const int row = e / p.channels;
    p.moments[int64_t{4} * evaluation * p.channels + e] =
        mixed(p, kMean1 + row % 2 + row / 2 * (kMean2 - kMean1), slot, p.channels, e % p.channels);
  }
}

template <typename T>
DEVICE void take_statistics(const Operands<T>& p, int block) {
  const Columns of(p.channels / 8);
  const int64_t first = block * p.each, last = first + p.each < p.pixels ? first + p.each : p.pixels;
  Moments<8> found;
  if (of.active()) {
    for (int64_t pixel = first + of.row; pixel < last; pixel += of.rows) {
      float v[8];
      load_values<8>(v, p.x, p.state, pixel * p.channels + 8 * of.group);
      found.add(v);
    }
  }
  const Shared<float> scratch = shared_array<float>(0, column_scratch(kThreads, of.groups, 16));
  found.write(of, static_cast<float>(last - first), scratch, p.partials, block, 0, p.channels);
}

template <typename T>
KERNEL_MIN_BLOCKS(kThreads, 4)
prepare_operands(GRID_CONSTANT Operands<T> p) {
  int block = block_index();
  if (block < p.statistics) return take_statistics(p, block);
  block -= p.statistics;
  if (block < p.weights) return pack_weights(p, block);
  block -= p.weights;
  if (block < p.slots) return write_parameters(p, block);
  write_moments(p, block - p.slots);
}

int64_t pixels_of(const ConvProblem& p) { return int64_t{1} * p.images * p.height * p.width; }

int64_t pixels_each(const ConvProblem& p) {
  const int64_t least = std::max(1, 8 * kPixels / p.channels), blocks = kBlocksEach * p.processors;
  return std::max(least, (pixels_of(p) + blocks - 1) / blocks);
}

template <typename T>
void prepare(const ConvPrepare& p) {
  Operands<T> a{};
  for (int i = 0; i < kNodes; ++i) a.nodes[i] = static_cast<const unsigned char*>(p.nodes[i]);
  a.mix = p.mix;
  a.slot_of = p.slot_of;
  a.x = static_cast<const unsigned char*>(p.x);
  a.packed = static_cast<T*>(p.packed);
  a.parameters = p.parameters;
  a.moments = p.moments;
  a.partials = p.partials;
  a.state = p.state;
  a.vectors = p.vectors;
  a.slots = p.slots;
  a.channels = p.channels;
  a.basis = static_cast<int>(p.basis);
  a.pixels = pixels_of(p);
  a.each = pixels_each(p);
  a.statistics = p.partials == nullptr ? 0 : static_cast<int>(input_rows(p));
  a.weights = 2 * p.slots * (p.channels / kInputs) * ((p.channels + kOutputs - 1) / kOutputs);
  const bool known = p.norm == Norm::known && p.moments != nullptr && p.nodes[kMean1] != nullptr;
  int64_t shared = int64_t{4} * kOutputs * kLine;
  if (a.statistics > 0) shared = std::max<int64_t>(shared, 4 * column_scratch(kThreads, p.channels / 8, 16));
  const int64_t blocks = a.statistics + a.weights + p.slots + (known ? p.stages * p.steps : 0);
  launch(Grid{"conv_prepare", blocks, kThreads, shared, 1, p.stream}, prepare_operands<T>, a);
}

}  // namespace

int64_t input_rows(const ConvProblem& p) {
  return (pixels_of(p) + pixels_each(p) - 1) / pixels_each(p);  // none of them is empty
}

void conv_prepare(const ConvPrepare& p) {
  if (p.channels % 8 != 0 || p.channels < 8 || p.channels > kMostChannels)
    throw std::runtime_error("conv_prepare: channels must be a multiple of 8 up to 256");
  switch (p.operand) {
    case Scalar::bf16: return prepare<bf16>(p);
    case Scalar::f16: return prepare<f16>(p);
    case Scalar::f32: return prepare<float>(p);
    default: throw std::runtime_error("conv_prepare: operands are bfloat16, float16 or float32");
  }
}

}  // namespace contnet_fast::cuda
