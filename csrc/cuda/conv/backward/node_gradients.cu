// From partial sums to gradients by the nodes of the basis, in one fixed order.
//
// Partial sums are rows of memory, one a block that made them.

#include <algorithm>

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/columns.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStrip = 64, kSome = 32;  // elements of a block of add_up_step; nodes that it takes at a time

struct AddUpArguments {
  Global<const float> weight_sums, mix, parameters;
  Global<float> weight_grads[2];
  int count, nodes, splits, channels, slots[kMostStages];
  bool scaled, fresh;
};

// A row of blocks is a convolution, a block some elements [tap, input, output].
KERNEL_MIN_BLOCKS(kThreads, 3)
add_up_step(GRID_CONSTANT AddUpArguments p) {
  const int c = p.channels, size = 9 * c * c, conv = block_row(), begin = block_index() * kStrip;
  if (!p.weight_grads[conv]) return;
  const Columns of(kStrip / 4);
  const Shared<float> sums = shared_array<float>(0, p.count * kStrip);
  const Shared<float> shares = shared_array<float>(4 * p.count * kStrip, p.count * kSome);
  const Shared<float> scratch =
      shared_array<float>(4 * p.count * (kStrip + kSome), column_scratch(kThreads, kStrip / 4, 4));
  for (int s = 0; s < p.count; ++s) {
    const int64_t row = static_cast<int64_t>(s * 2 + conv) * p.splits;
    float factor = 1.f;
    if (p.scaled && conv == 1) factor = p.parameters[(p.slots[s] * kParameterRows + kRowSkip) * c];
    add_rows(p.weight_sums + (row * size + begin), p.splits, size, of, scratch);
    if (thread_index() < kStrip) sums[s * kStrip + thread_index()] = factor * scratch[thread_index()];
  }
  for (int first = 0; first < p.nodes; first += kSome) {
    const int count = p.nodes - first < kSome ? p.nodes - first : kSome;
    sync_threads();
    for (int i = thread_index(); i < p.count * count; i += kThreads)
      shares[i] = p.mix[p.slots[i / count] * p.nodes + first + i % count];
    sync_threads();
    for (int i = thread_index(); i < count * kStrip; i += kThreads) {
      const int node = i / kStrip, e = begin + i % kStrip;
      float total = 0.f;
      bool any = p.fresh;
      for (int s = 0; s < p.count; ++s) {
        const float share = shares[s * count + node];
        if (share == 0.f) continue;
        total += share * sums[s * kStrip + i % kStrip];
        any = true;
      }
      if (!any) continue;
      const int64_t place = static_cast<int64_t>(first + node) * size + (e % c * c + e / c % c) * 9 + e / (c * c);
      if (!p.fresh) total += p.weight_grads[conv][place];
      p.weight_grads[conv][place] = total;
    }
  }
}

struct FoldOf {
  Global<const float> rows;
  Global<float> sums;
  int groups, count, columns;
};

struct FoldArguments {
  FoldOf of[3];
};

// A row of blocks is a group of rows.
KERNEL_MIN_BLOCKS(kThreads, 3)
fold_rows(GRID_CONSTANT FoldArguments p) {
  int group = block_row(), i = 0;
  while (group >= p.of[i].groups) group -= p.of[i++].groups;
  const int count = p.of[i].count, columns = p.of[i].columns;
  const Columns of(columns / 4);
  const Shared<float> scratch = shared_array<float>(0, column_scratch(kThreads, columns / 4, 4));
  add_rows(p.of[i].rows + static_cast<int64_t>(group) * count * columns, count, columns, of, scratch);
  for (int c = thread_index(); c < columns; c += kThreads) p.of[i].sums[group * columns + c] = scratch[c];
}

struct VectorArguments {
  Global<const float> mix, parameters, biases, sums[2];
  Global<const int32_t> slot_of;
  Global<float> grads[kParameterRows];
  int evaluations, nodes, channels, bias_distance, distance;
  bool post, normed, skipped;
};

// total[row] += what evaluation e has for a channel of a node: rows of the parameters
DEVICE void add_evaluation(float (&total)[kParameterRows], const VectorArguments& p, int e, int node, int channel) {
  const int c = p.channels, slot = p.slot_of[e];
  const float share = p.mix[slot * p.nodes + node];
  if (share == 0.f) return;
  const Global<const float> of = p.parameters + (slot * kParameterRows * c + channel);
  const float factor = p.skipped ? float(of[kRowSkip * c]) : 1.f;
  const Global<const float> bias = p.biases + (static_cast<int64_t>(e) * p.bias_distance + channel);
  if (p.biases) {
    total[kRowBias1] += share * bias[0];
    total[kRowBias2] += share * (p.post ? 1.f : factor) * bias[c];
  }
  const int64_t at = static_cast<int64_t>(e) * p.distance + channel;
  UNROLL
  for (int n = 0; n < 2; ++n) {
    if (!p.normed) continue;
    const float scale = share * (p.post && n == 1 ? factor : 1.f);
    total[weight_row(n)] += scale * p.sums[n][at + c];
    total[weight_row(n) + 1] += scale * p.sums[n][at];
  }
  if (!p.grads[kRowSkip]) return;
  const Global<const float> last = p.sums[1] + at;
  if (!p.post) {
    total[kRowSkip] += share * (last[2 * c] + of[c] * bias[c]);
  } else if (p.normed) {
    total[kRowSkip] += share * (last[c] * of[kRowGamma2 * c] + last[0] * of[(kRowGamma2 + 1) * c]);
  } else {
    total[kRowSkip] += share * last[c];
  }
}

// A block is a node; a lane is one of 32 channels, of which warps share the evaluations and then have a row each.
KERNEL(kThreads)
node_vectors(GRID_CONSTANT VectorArguments p) {
  const int node = block_index(), lane = lane_index(), row = warp_index();
  const Shared<float> parts = shared_array<float>(0, kParameterRows * kThreads);
  float by_skip = 0.f;
  for (int first = 0; first < p.channels; first += 32) {
    const int channel = first + lane;
    float total[kParameterRows] = {};
    if (channel < p.channels)
      for (int e = warp_index(); e < p.evaluations; e += kThreads / 32) add_evaluation(total, p, e, node, channel);
    sync_threads();  // parts may still be read
    UNROLL
    for (int r = 0; r < kParameterRows; ++r) parts[r * kThreads + thread_index()] = total[r];
    sync_threads();
    if (row >= kParameterRows || channel >= p.channels || !p.grads[row]) continue;
    float sum = 0.f;
    UNROLL
    for (int w = 0; w < kThreads / 32; ++w) sum += parts[row * kThreads + 32 * w + lane];
    if (row == kRowSkip) {
      by_skip += sum;
    } else {
      p.grads[row][node * p.channels + channel] = sum;
    }
  }
  by_skip = warp_sum(by_skip);
  if (p.grads[kRowSkip] && row == kRowSkip && lane == 0) p.grads[kRowSkip][node] = by_skip;
}

}  // namespace

void add_up(const Pass& p, const AddUp& w) {
  AddUpArguments a{};
  a.weight_sums = w.weight_sums;
  a.mix = p.mix;
  a.parameters = p.parameters;
  for (int i = 0; i < 2; ++i) a.weight_grads[i] = w.weight_grads[i];
  a.count = w.count;
  std::copy_n(w.slots, w.count, a.slots);
  a.nodes = p.nodes;
  a.splits = w.splits;
  a.channels = p.channels;
  a.scaled = p.skip != 0 && p.post == 0;
  a.fresh = w.fresh != 0;
  const int64_t shared = 4 * (w.count * (kStrip + kSome) + column_scratch(kThreads, kStrip / 4, 4));
  launch(Grid{"add_up", int64_t{9} * p.channels * p.channels / kStrip, kThreads, shared, 1, p.stream, 2}, add_up_step,
         a);
}

void node_gradients(const Pass& p, const NodeGradients& g) {
  FoldArguments f{};
  int64_t groups = 0, shared = 0;
  for (int i = 0; i < 3; ++i) {
    f.of[i] = {g.folds[i].rows, g.folds[i].sums, g.folds[i].groups, g.folds[i].count, g.folds[i].columns};
    groups += g.folds[i].groups;
    if (g.folds[i].groups > 0)
      shared = std::max<int64_t>(shared, 4 * column_scratch(kThreads, g.folds[i].columns / 4, 4));
  }
  if (groups > 0) launch(Grid{"fold_rows", 1, kThreads, shared, 1, p.stream, groups}, fold_rows, f);
  VectorArguments a{};
  a.mix = p.mix;
  a.parameters = p.parameters;
  a.biases = g.biases;
  a.slot_of = p.slot_of;
  for (int n = 0; n < 2; ++n) a.sums[n] = g.sums[n];
  for (int r = 0; r < kParameterRows; ++r) a.grads[r] = g.grads[r];
  a.evaluations = p.evaluations();
  a.nodes = p.nodes;
  a.channels = p.channels;
  a.bias_distance = g.bias_distance;
  a.distance = g.distance;
  a.post = p.post != 0;
  a.normed = p.norm != Norm::none;
  a.skipped = p.skip != 0;
  launch(Grid{"node_gradients", p.nodes, kThreads, 4 * kParameterRows * kThreads, 1, p.stream}, node_vectors, a);
}

}  // namespace contnet_fast::cuda
