// From partial sums to gradients by the nodes of the basis, in one fixed order.

#include "adjoint.h"
#include "columns.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256, kNorm2 = 4, kSkip = kParameterRows - 1;  // rows of the parameters

struct AddUpArguments {
  Global<const float> weight_sums, bias_sums, mix, parameters;
  Global<const int32_t> slot_of;
  Global<float> weight_grads[2], bias_grads;
  int first, stages, nodes, splits, channels;
  bool scaled, fresh;
};

// A row of blocks is a convolution and a node; a thread is an element [tap, input, output].
KERNEL(kThreads)
add_up_step(GRID_CONSTANT AddUpArguments p) {
  const int c = p.channels, size = 9 * c * c, conv = block_row() % 2, node = block_row() / 2;
  const int e = block_index() * kThreads + thread_index();
  if (e < size && p.weight_grads[conv]) {
    const int o = e % c, i = e / c % c, tap = e / (c * c);
    float total = 0.f;
    for (int stage = 0; stage < p.stages; ++stage) {
      const int slot = p.slot_of[p.first + stage];
      float share = p.mix[slot * p.nodes + node];
      if (share == 0.f) continue;
      if (p.scaled && conv == 1) share *= p.parameters[(slot * kParameterRows + kSkip) * c];
      const Global<const float> sums = p.weight_sums + static_cast<int64_t>(stage * 2 + conv) * p.splits * size;
      float some = 0.f;
      for (int split = 0; split < p.splits; ++split) some += sums[static_cast<int64_t>(split) * size + e];
      total += share * some;
    }
    const int64_t place = static_cast<int64_t>(node) * size + (o * c + i) * 9 + tap;
    if (!p.fresh) total += p.weight_grads[conv][place];
    p.weight_grads[conv][place] = total;
  }
  if (!p.bias_sums || node != 0 || e >= p.stages * c) return;
  const int stage = e / c;
  float some = 0.f;
  for (int split = 0; split < p.splits; ++split) some += p.bias_sums[((stage * 2 + conv) * p.splits + split) * c + e % c];
  p.bias_grads[((p.first + stage) * 2 + conv) * c + e % c] = some;
}

// sums[row of blocks] <- the sum of its rows [row, 3, channel]
KERNEL(kThreads)
fold_rows(Global<const float> rows, Global<float> sums, int count, int columns) {
  const int column = block_index() * kThreads + thread_index();
  if (column >= columns) return;
  const Global<const float> from = rows + static_cast<int64_t>(block_row()) * count * columns + column;
  float sum = 0.f;
  for (int row = 0; row < count; ++row) sum += from[static_cast<int64_t>(row) * columns];
  sums[block_row() * columns + column] = sum;
}

struct VectorArguments {
  Global<const float> mix, parameters, bias_grads, sums[2];  // sums of norm 0, of norm 1: [evaluation, 3, channel]
  Global<const int32_t> slot_of;
  Global<float> conv_bias[2], norm_weight[2], norm_bias[2], skip;
  int evaluations, nodes, channels;
  bool post, normed, skipped;
};

// A block is a node; a thread some channels.
KERNEL(kThreads)
node_vectors(GRID_CONSTANT VectorArguments p) {
  const int c = p.channels, node = block_index();
  float by_skip = 0.f;
  for (int channel = thread_index(); channel < c; channel += kThreads) {
    float conv_bias[2] = {}, norm_weight[2] = {}, norm_bias[2] = {};
    for (int e = 0; e < p.evaluations; ++e) {
      const int slot = p.slot_of[e];
      const float share = p.mix[slot * p.nodes + node];
      if (share == 0.f) continue;
      const Global<const float> of = p.parameters + (slot * kParameterRows * c + channel);
      const float factor = p.skipped ? float(of[kSkip * c]) : 1.f;
      if (p.bias_grads) {
        conv_bias[0] += share * p.bias_grads[2 * e * c + channel];
        conv_bias[1] += share * (p.post ? 1.f : factor) * p.bias_grads[(2 * e + 1) * c + channel];
      }
      for (int n = 0; p.normed && n < 2; ++n) {
        const float scale = share * (p.post && n == 1 ? factor : 1.f);
        norm_bias[n] += scale * p.sums[n][3 * e * c + channel];
        norm_weight[n] += scale * p.sums[n][(3 * e + 1) * c + channel];
      }
      if (!p.skip) continue;
      const Global<const float> last = p.sums[1] + (3 * e * c + channel);
      if (!p.post) {
        by_skip += share * (last[2 * c] + of[c] * p.bias_grads[(2 * e + 1) * c + channel]);
      } else if (p.normed) {
        by_skip += share * (last[c] * of[kNorm2 * c] + last[0] * of[(kNorm2 + 1) * c]);
      } else {
        by_skip += share * last[c];
      }
    }
    UNROLL
    for (int i = 0; i < 2; ++i) {
      if (p.conv_bias[i]) p.conv_bias[i][node * c + channel] = conv_bias[i];
      if (p.norm_weight[i]) p.norm_weight[i][node * c + channel] = norm_weight[i];
      if (p.norm_bias[i]) p.norm_bias[i][node * c + channel] = norm_bias[i];
    }
  }
  by_skip = block_sum<kThreads / 32>(by_skip, shared_array<float>(0, kThreads / 32));
  if (p.skip && thread_index() == 0) p.skip[node] = by_skip;
}

int64_t up(int64_t x, int64_t y) { return (x + y - 1) / y; }

}  // namespace

void add_up(const Pass& p, const AddUp& w) {
  AddUpArguments a{};
  a.weight_sums = w.weight_sums;
  a.bias_sums = w.bias_sums;
  a.mix = p.mix;
  a.parameters = p.parameters;
  a.slot_of = p.slot_of;
  for (int i = 0; i < 2; ++i) a.weight_grads[i] = w.weight_grads[i];
  a.bias_grads = w.bias_grads;
  a.first = w.first;
  a.stages = p.stages;
  a.nodes = p.nodes;
  a.splits = w.splits;
  a.channels = p.channels;
  a.scaled = p.skip != 0 && p.post == 0;
  a.fresh = w.fresh != 0;
  const int64_t size = 9 * p.channels * p.channels, biases = p.stages * p.channels;
  launch(Grid{"add_up", up(size > biases ? size : biases, kThreads), kThreads, 0, 1, p.stream, 2 * p.nodes}, add_up_step, a);
}

void node_gradients(const Pass& p, const NodeGradients& g) {
  VectorArguments a{};
  a.mix = p.mix;
  a.parameters = p.parameters;
  a.bias_grads = g.bias_grads;
  a.slot_of = p.slot_of;
  for (int n = 0; n < 2; ++n) {
    if (g.rows[n] != 0) {
      const int columns = 3 * p.channels;
      launch(Grid{"fold_rows", up(columns, kThreads), kThreads, 0, 1, p.stream, p.evaluations()}, fold_rows,
             static_cast<const float*>(g.sums[n]), g.folded[n], g.rows[n], columns);
      a.sums[n] = static_cast<const float*>(g.folded[n]);
    }
    a.conv_bias[n] = g.conv_bias[n];
    a.norm_weight[n] = g.norm_weight[n];
    a.norm_bias[n] = g.norm_bias[n];
  }
  a.skip = g.skip;
  a.evaluations = p.evaluations();
  a.nodes = p.nodes;
  a.channels = p.channels;
  a.post = p.post != 0;
  a.normed = p.norm != Norm::none;
  a.skipped = p.skip != 0;
  launch(Grid{"node_gradients", p.nodes, kThreads, kThreads / 32 * 4, 1, p.stream}, node_vectors, a);
}

}  // namespace contnet_fast::cuda
