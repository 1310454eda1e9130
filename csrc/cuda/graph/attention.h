// Attention along the edges of a graph as launches.
#pragma once

#include "cuda/graph/attention_edges.h"
#include "cuda/graph/attention_launch.h"
#include "cuda/lib/arena.h"

namespace contnet_fast::cuda {

// [edge, head] of weights and of gradients, [edge] of mean weights: those that are needed
template <typename T>
struct AttentionPieces {
  using A = Sum<T>;
  Arena arena;
  A *weights, *back, *mean;

  explicit AttentionPieces(const GraphAttentionBackward& p) : arena(p.workspace) {
    const bool scores = p.grad_targets != nullptr || p.grad_sources != nullptr;
    weights = of(p.edges * p.heads, true);
    back = of(p.edges * p.heads, scores);
    mean = of(p.edges, p.shared && p.grad_states != nullptr);
  }
  A* of(int64_t count, bool needed) {
    return needed && count > 0 ? reinterpret_cast<A*>(arena.take(count * static_cast<int64_t>(sizeof(A)))) : nullptr;
  }
};

namespace {

template <typename T, typename I>
class AttentionRun {
  using A = Sum<T>;

 public:
  explicit AttentionRun(const GraphAttention& p) : p_(p) {
    in_.nodes = p.nodes;
    in_.edges = p.edges;
    in_.heads = p.heads;
    in_.depth = p.depth;
    in_.features = p.features;
    in_.shared = p.shared != 0;
    in_.slope = static_cast<A>(p.slope);
    in_.scaling = p.depth > 0 ? static_cast<A>(1.0 / std::sqrt(static_cast<double>(p.depth))) : A(1);
    in_.targets = static_cast<const T*>(p.targets);
    in_.sources = static_cast<const T*>(p.sources);
    in_.states = static_cast<const T*>(p.states);
    in_.factors = static_cast<const A*>(p.factors);
    in_.indptr = static_cast<const I*>(p.indptr);
    in_.indices = static_cast<const I*>(p.indices);
  }

  void forward() {
    const int64_t own = p_.shared ? 0 : p_.features;  // features that each head weighs
    rows(own);
    if (!p_.shared || p_.edges == 0) {
      if (p_.shared && p_.features > 0) sums(nullptr, nullptr, nullptr, p_.y, p_.features, 1, 1.0);
      return;
    }
    AttentionEdges<T, I> o{};
    o.largest = static_cast<const A*>(p_.largest);
    o.sums = static_cast<const A*>(p_.sums);
    A* mean = static_cast<A*>(p_.workspace);
    if (p_.features == 0) {
      o.y = static_cast<T*>(p_.y);
    } else {
      o.mean = mean;
    }
    edges(o);
    if (p_.features > 0) sums(mean, nullptr, p_.states, p_.y, p_.features, 1, 1.0);
  }

  void backward(const GraphAttentionBackward& b, A* weights, A* back, A* mean) {
    AttentionEdges<T, I> o{};
    o.largest = static_cast<const A*>(b.given_largest);
    o.sums = static_cast<const A*>(b.given_sums);
    o.grad = static_cast<const T*>(b.grad);
    const bool scores = b.grad_targets != nullptr || b.grad_sources != nullptr;
    if (p_.edges > 0) {
      o.weights = weights;
      if (scores) o.back = back;
      o.mean = mean;
      edges(o);
      if (scores) softmax(weights, back);
    }
    if (b.grad_targets != nullptr) score_sums(back, b.sources, b.grad_targets);
    transpose(b);
    if (b.grad_sources != nullptr) score_sums(back, b.targets, b.grad_sources);
    if (b.grad_states == nullptr) return;
    if (p_.shared) {
      sums(mean, nullptr, b.grad, b.grad_states, p_.features, 1, 1.0);
    } else {
      sums(weights, b.factors, b.grad, b.grad_states, p_.features, p_.heads, 1.0);
    }
  }

 private:
  static constexpr int kWide = 16 / sizeof(T);

  // so many lanes as features of both kinds of rows want
  RowTile tile(int64_t features, int64_t depth, int64_t degree) const {
    const int vector = std::min(vector_of(features, sizeof(T)), vector_of(depth, sizeof(T)));
    return row_tile(std::max(features, depth), vector, degree);
  }
  int64_t degree() const { return p_.edges / std::max<int64_t>(p_.nodes, 1); }

  void rows(int64_t own) {
    AttentionInputs<T, I> a = in_;
    a.tile = tile(own, p_.depth, degree());
    T* y = own > 0 ? static_cast<T*>(p_.y) : nullptr;
    const int64_t each = kRowThreads / (a.tile.lanes * a.tile.slots), pairs = p_.nodes * p_.heads;
    launch(Grid{"attention_rows", (pairs + each - 1) / each, kRowThreads, 0, 1, p_.stream,
                std::max<int64_t>(1, column_blocks(a.tile, own))},
           a.tile.vector == kWide ? attention_rows<T, I, kWide> : attention_rows<T, I, 1>, a, y,
           static_cast<A*>(p_.largest), static_cast<A*>(p_.sums));
  }

  void edges(const AttentionEdges<T, I>& o) {
    AttentionInputs<T, I> a = in_;
    a.tile = tile(o.back ? p_.features : 0, p_.depth, 1);
    const int64_t each = kRowThreads / a.tile.lanes;
    launch(Grid{"attention_edges", (p_.edges + each - 1) / each, kRowThreads, 0, 1, p_.stream},
           a.tile.vector == kWide ? attention_edges<T, I, kWide> : attention_edges<T, I, 1>, a, o);
  }

  void softmax(const A* weights, A* back) {
    AttentionInputs<T, I> a = in_;
    a.tile = row_tile(1, 1, degree());
    const int64_t each = kRowThreads / a.tile.slots;
    launch(Grid{"softmax_back", (p_.nodes * p_.heads + each - 1) / each, kRowThreads, 0, 1, p_.stream},
           softmax_back<T, I>, a, weights, back);
  }

  // from here on sums are over the rows of the transpose
  void transpose(const GraphAttentionBackward& b) {
    if (FAULT_POINT(12)) return;
    in_.indptr = static_cast<const I*>(b.back_indptr);
    in_.indices = static_cast<const I*>(b.back_indices);
    places_ = static_cast<const I*>(b.back_places);
  }

  // of gradients by scores: times the other side's vectors, or alone
  void score_sums(const A* back, const void* other, void* out) {
    if (p_.depth > 0) {
      sums(back, nullptr, other, out, p_.depth, p_.heads, 1.0 / std::sqrt(static_cast<double>(p_.depth)));
    } else {
      sums(back, nullptr, nullptr, out, 1, p_.heads, 1.0);
    }
  }

  void sums(const A* numbers, const void* factors, const void* from, void* out, int64_t features, int64_t heads,
            double scaling) {
    HeadSums<T, I> a{};
    a.tile = tile(features, 0, degree());
    a.nodes = p_.nodes;
    a.heads = heads;
    a.features = features;
    a.scaling = static_cast<A>(scaling);
    a.indptr = in_.indptr;
    a.indices = in_.indices;
    a.places = places_;
    a.numbers = numbers;
    a.factors = static_cast<const A*>(factors);
    a.from = static_cast<const T*>(from);
    a.out = static_cast<T*>(out);
    const int64_t each = kRowThreads / (a.tile.lanes * a.tile.slots), pairs = p_.nodes * heads;
    launch(Grid{"head_sums", (pairs + each - 1) / each, kRowThreads, 0, 1, p_.stream, column_blocks(a.tile, features)},
           a.tile.vector == kWide ? head_sums<T, I, kWide> : head_sums<T, I, 1>, a);
  }

  const GraphAttention& p_;
  AttentionInputs<T, I> in_{};
  const I* places_ = nullptr;
};

template <typename T>
void run_attention(const GraphAttention& p) {
  if (p.wide_index) {
    AttentionRun<T, int64_t>(p).forward();
  } else {
    AttentionRun<T, int32_t>(p).forward();
  }
}

template <typename T>
void run_attention_back(const GraphAttentionBackward& p) {
  const AttentionPieces<T> w(p);
  if (p.wide_index) {
    AttentionRun<T, int64_t>(p).backward(p, w.weights, w.back, w.mean);
  } else {
    AttentionRun<T, int32_t>(p).backward(p, w.weights, w.back, w.mean);
  }
}

}  // namespace

void graph_attention_f32(const GraphAttention&);  // instances/
void graph_attention_f64(const GraphAttention&);
void graph_attention_bf16(const GraphAttention&);
void graph_attention_f16(const GraphAttention&);
void graph_attention_backward_f32(const GraphAttentionBackward&);
void graph_attention_backward_f64(const GraphAttentionBackward&);
void graph_attention_backward_bf16(const GraphAttentionBackward&);
void graph_attention_backward_f16(const GraphAttentionBackward&);

}  // namespace contnet_fast::cuda
