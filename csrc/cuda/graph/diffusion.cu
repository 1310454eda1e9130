// Solves of the diffusion field as launches: one an evaluation, and one for its gradient on the rows of the transpose.
// The field is linear: backward needs its states, and makes them again where they were not kept, for the gradients of
// coefficients and weights alone, which take a launch a step each.

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cuda/graph/diffusion_pass.h"
#include "cuda/graph/graph_launch.h"
#include "cuda/lib/arena.h"
#include "cuda/lib/reduce.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256;

int64_t bytes_of(Scalar type) { return type == Scalar::f64 ? 8 : type == Scalar::f32 ? 4 : 2; }
Scalar sums_of(Scalar type) { return type == Scalar::f64 ? type : Scalar::f32; }

void diffusion_stage(const DiffusionPass& p) {
  switch (p.state) {
    case Scalar::f32: return diffusion_stage_f32(p);
    case Scalar::f64: return diffusion_stage_f64(p);
    case Scalar::bf16: return diffusion_stage_bf16(p);
    case Scalar::f16: return diffusion_stage_f16(p);
  }
}

// to[e] = values[places[e]]
template <typename T, typename I>
KERNEL(kThreads)
reorder_values(Global<const T> values, Global<const I> places, int64_t edges, Global<T> to) {
  const int64_t e = int64_t{block_index()} * kThreads + thread_index();
  if (e < edges) to[e] = values[static_cast<I>(places[e])];
}

template <typename T>
void reorder(const DiffusionBackward& p, void* to) {
  const Grid grid{"reorder_values", (p.edges + kThreads - 1) / kThreads, kThreads, 0, 1, p.stream};
  const T* values = static_cast<const T*>(p.values);
  if (p.wide_index) {
    launch(grid, reorder_values<T, int64_t>, values, static_cast<const int64_t*>(p.back_places), p.edges,
           static_cast<T*>(to));
  } else {
    launch(grid, reorder_values<T, int32_t>, values, static_cast<const int32_t*>(p.back_places), p.edges,
           static_cast<T*>(to));
  }
}

template <typename A>
struct MixedNodes {
  Global<const A> mix, from[2];
  Global<A> to[2];
  int terms;
  int64_t row_stride, term_stride, nodes;
};

template <typename A>
KERNEL(kThreads)
mix_nodes(GRID_CONSTANT MixedNodes<A> p) {
  const int64_t node = int64_t{block_index()} * kThreads + thread_index(), row = block_row();
  if (node >= p.nodes) return;
  UNROLL
  for (int k = 0; k < 2; ++k) {
    if (!p.from[k]) continue;
    A sum = 0;
    for (int t = 0; t < p.terms; ++t) {
      const A weight = p.mix[row * p.row_stride + t * p.term_stride];
      if (weight != A(0)) sum += weight * static_cast<A>(p.from[k][t * p.nodes + node]);
    }
    p.to[k][row * p.nodes + node] = sum;
  }
}

template <typename A>
void mix(const DiffusionMix& p) {
  MixedNodes<A> a{};
  a.mix = static_cast<const A*>(p.mix);
  for (int k = 0; k < 2; ++k) {
    a.from[k] = static_cast<const A*>(p.from[k]);
    a.to[k] = static_cast<A*>(p.to[k]);
  }
  a.terms = p.terms;
  a.row_stride = p.row_stride;
  a.term_stride = p.term_stride;
  a.nodes = p.nodes;
  launch(Grid{"mix_nodes", (p.nodes + kThreads - 1) / kThreads, kThreads, 0, 1, p.stream, p.rows}, mix_nodes<A>, a);
}

// ---- the launches of both passes

// Pointers to the maps of a solve, and the launches of its steps forward.
class Steps {
 public:
  Steps(const DiffusionProblem& p, Arena& arena) : p_(p), map_(p.nodes * p.features * bytes_of(p.state)) {
    terms_ = maps(arena, p.stages - 1);
  }

  unsigned char* terms() const { return terms_; }
  unsigned char* maps(Arena& arena, int64_t count) const { return count > 0 ? arena.take(count * map_) : nullptr; }
  // [i] of maps, or null where there are none
  template <typename P>
  auto* at(P* maps, int64_t i) const {
    using Byte = std::conditional_t<std::is_const_v<P>, const unsigned char, unsigned char>;
    return maps == nullptr ? nullptr : static_cast<Byte*>(maps) + i * map_;
  }
  const void* of_slot(const void* coefficients, int evaluation) const {
    return static_cast<const unsigned char*>(coefficients) +
           p_.slot_list[evaluation] * p_.nodes * bytes_of(sums_of(p_.state));
  }
  // of rate j in what follows evaluation s of a step
  double after(int s, int j) const { return s + 1 < p_.stages ? p_.rows[s + 1][j] : p_.update[j]; }

  DiffusionPass described(int evaluation) const {
    DiffusionPass a{};
    a.state = p_.state;
    a.wide_index = p_.wide_index != 0;
    a.nodes = p_.nodes;
    a.features = p_.features;
    a.edges = p_.edges;
    a.indptr = p_.indptr;
    a.indices = p_.indices;
    a.values = p_.values;
    a.scale = of_slot(p_.scale, evaluation);
    a.diagonal = of_slot(p_.diagonal, evaluation);
    a.mixing = p_.mixing;
    a.terms = terms_;
    a.stream = p_.stream;
    return a;
  }

  // Evaluation `stage` of step `step` at u, of a step that began at `state`.
  void evaluate(int step, int stage, const void* u, const void* state, void* target, void* product) const {
    DiffusionPass a = described(step * p_.stages + stage);
    a.source = p_.source;
    a.u = u;
    a.base = state;
    a.before = 1.0;
    a.own = after(stage, stage);
    for (int j = 0; j < stage; ++j) add_term(a, j, after(stage, j));
    bool later = false;
    for (int t = stage + 1; t < p_.stages; ++t) later = later || after(t, stage) != 0.0;
    if (later) a.kept = at(terms_, stage);
    a.target = target;
    a.product = product;
    diffusion_stage(a);
  }

  static void add_term(DiffusionPass& a, int index, double weight) {
    if (weight == 0.0) return;
    a.index[a.count] = index;
    a.weight[a.count++] = weight;
  }

  // Step `step` from `state` to `following`, which may be null: not wanted. `count` maps of inputs are used in turn.
  void step(int step, const void* state, void* following, unsigned char* inputs, int count, void* products) const {
    for (int s = 0; s < p_.stages; ++s) {
      const void* u = s == 0 ? state : at(inputs, (s - 1) % count);
      void* target = s == p_.stages - 1 ? following : at(inputs, s % count);
      void* product = at(products, s);
      if (target != nullptr || product != nullptr) evaluate(step, s, u, state, target, product);
    }
  }

 private:
  const DiffusionProblem& p_;
  int64_t map_;
  unsigned char* terms_;
};

struct ForwardMaps {
  Arena arena;
  Steps steps;
  unsigned char *ring, *spare;

  explicit ForwardMaps(const DiffusionSolve& p)
      : arena(p.workspace),
        steps(p, arena),
        ring(steps.maps(arena, p.kept.inputs == nullptr ? std::min(2, p.stages - 1) : 0)),
        spare(steps.maps(arena, p.kept.states == nullptr ? std::min(2, p.steps - 1) : 0)) {}
};

// A backward pass: what it makes on the way, and one method for each kind of launch.
class Backward {
 public:
  explicit Backward(const DiffusionBackward& p) : p_(p), arena_(p.workspace), steps_(p, arena_) {
    rates_ = steps_.maps(arena_, p.stages - 1);
    costates_ = steps_.maps(arena_, std::min(2, p.steps - 1));
    values_ = arena_.take(p.edges * bytes_of(p.state));
    if (!needs_states()) return;
    if (!everything()) {
      inputs_ = steps_.maps(arena_, p.stages - 1);
      if (p.grad_scale != nullptr) products_ = steps_.maps(arena_, p.stages);
    }
    if (p.kept.states == nullptr) states_ = steps_.maps(arena_, p.steps - 1);
    if (p.grad_mixing != nullptr)
      parts_ = arena_.take(mixing_parts(p.nodes, p.features) * p.features * p.features * bytes_of(sums_of(p.state)));
  }

  int64_t workspace() const { return arena_.taken(); }

  void run() {
    diffusion_reorder(p_, values_);
    std::vector<bool> seen(p_.slots, false);
    if (needs_states() && p_.kept.states == nullptr && p_.steps > 1) make_states();
    const void* costate = p_.by_step != 0 ? steps_.at(p_.grad, p_.steps) : p_.grad;
    for (int i = p_.steps - 1; i >= 0; --i) {
      void* target = i > 0 ? steps_.at(costates_, (i - 1) % 2) : p_.grad_x;
      step_back(i, costate, target);
      if (needs_states()) by_states(i, costate, seen);
      costate = target;
    }
  }

 private:
  bool needs_states() const {
    return p_.grad_scale != nullptr || p_.grad_diagonal != nullptr || p_.grad_values != nullptr ||
           p_.grad_mixing != nullptr;
  }

  bool everything() const { return p_.kept.products != nullptr; }  // is kept

  // the states after all steps but the last
  void make_states() const {
    const void* state = p_.x;
    for (int i = 0; i + 1 < p_.steps; ++i) {
      steps_.step(i, state, steps_.at(states_, i), inputs_, std::min(2, p_.stages - 1), nullptr);
      state = steps_.at(states_, i);
    }
  }

  // From the adjoint after step `step` to that before it. A stage takes the gradient by its rate to that by its input,
  // and on to the gradient by the rate before it, or at the first stage to the costate.
  void step_back(int step, const void* costate, void* target) const {
    for (int s = p_.stages - 1; s >= 0; --s) {
      const bool last = s == p_.stages - 1;
      DiffusionPass a = steps_.described(step * p_.stages + s);
      a.back = true;
      if (!FAULT_POINT(2)) {
        a.indptr = p_.back_indptr;
        a.indices = p_.back_indices;
        a.values = values_;
      }
      a.u = last ? costate : steps_.at(rates_, s);
      a.factor = last ? p_.update[s] : 1.0;
      a.base = costate;
      a.total = p_.grad_source;
      a.fresh = last && step == p_.steps - 1;
      if (s > 0) {  // maps of gradients by inputs: that of stage s is [s - 1]
        a.kept = steps_.at(steps_.terms(), s - 1);
        a.before = p_.update[s - 1];
        a.own = p_.rows[s][s - 1];
        for (int r = s + 1; r < p_.stages; ++r) Steps::add_term(a, r - 1, p_.rows[r][s - 1]);
        a.target = steps_.at(rates_, s - 1);
      } else {
        a.before = a.own = 1.0;
        for (int r = 1; r < p_.stages; ++r) Steps::add_term(a, r - 1, 1.0);
        if (p_.by_step != 0) a.upstream = steps_.at(p_.grad, step);
        a.target = target;
      }
      diffusion_stage(a);
    }
  }

  void by_states(int step, const void* costate, std::vector<bool>& seen) const {
    const void* states = p_.kept.states != nullptr ? p_.kept.states : states_;
    const void* state = step == 0 ? p_.x : steps_.at(states, step - 1);
    DiffusionStep a{};
    if (everything()) {
      a.inputs = steps_.at(p_.kept.inputs, int64_t{step} * (p_.stages - 1));
      a.products = steps_.at(p_.kept.products, int64_t{step} * p_.stages);
    } else {
      steps_.step(step, state, nullptr, inputs_, p_.stages - 1, products_);
      a.inputs = inputs_;
      a.products = products_;
    }
    a.state = p_.state;
    a.wide_index = p_.wide_index != 0;
    a.nodes = p_.nodes;
    a.features = p_.features;
    a.edges = p_.edges;
    a.stages = p_.stages;
    for (int s = 0; s < p_.stages; ++s) {
      a.slots[s] = p_.slot_list[step * p_.stages + s];
      a.fresh_slots[s] = !seen[a.slots[s]];
      seen[a.slots[s]] = true;
    }
    a.fresh = step == p_.steps - 1;
    a.u = state;
    a.rates = rates_;
    a.costate = costate;
    a.factor = p_.update[p_.stages - 1];
    a.indptr = p_.indptr;
    a.indices = p_.indices;
    a.scale = p_.scale;
    a.grad_scale = p_.grad_scale;
    a.grad_diagonal = p_.grad_diagonal;
    a.grad_values = p_.grad_values;
    a.grad_mixing = parts_;
    a.stream = p_.stream;
    if (a.grad_scale != nullptr || a.grad_diagonal != nullptr) diffusion_row_gradients(a);
    if (a.grad_values != nullptr) diffusion_value_gradients(a);
    if (parts_ == nullptr) return;
    if (!FAULT_POINT(6) || step > 0) diffusion_mixing_gradients(a);
    if (step == 0) diffusion_add_parts(a, p_.grad_mixing);
  }

  const DiffusionBackward& p_;
  Arena arena_;
  Steps steps_;
  unsigned char *rates_, *costates_, *values_;
  unsigned char *inputs_ = nullptr, *products_ = nullptr, *states_ = nullptr;  // made again
  unsigned char* parts_ = nullptr;                                             // of the gradient by M
};

void check(const DiffusionProblem& p) {
  if (p.stages < 1 || p.stages > kMostStages || p.steps < 1)
    throw std::runtime_error("diffusion_solve: a time grid of other sizes");
}

}  // namespace

int64_t plan_diffusion_solve(const DiffusionSolve& given) {
  DiffusionSolve p = given;
  p.workspace = nullptr;
  return ForwardMaps(p).arena.taken();
}

void diffusion_solve(const DiffusionSolve& p) {
  check(p);
  const ForwardMaps maps(p);
  const Steps& steps = maps.steps;
  const bool all = p.kept.inputs != nullptr;
  const void* state = p.x;
  for (int i = 0; i < p.steps; ++i) {
    void* following = steps.at(p.kept.states, i);
    if (following == nullptr) following = steps.at(maps.spare, i % 2);
    if (i + 1 == p.steps) following = p.y;
    unsigned char* inputs = all ? steps.at(p.kept.inputs, int64_t{i} * (p.stages - 1)) : maps.ring;
    steps.step(i, state, following, inputs, all ? p.stages - 1 : std::min(2, p.stages - 1),
               steps.at(p.kept.products, int64_t{i} * p.stages));
    state = following;
  }
}

int64_t plan_diffusion_backward(const DiffusionBackward& given) {
  DiffusionBackward p = given;
  p.workspace = nullptr;
  return Backward(p).workspace();
}

void diffusion_backward(const DiffusionBackward& p) {
  check(p);
  Backward(p).run();
}

void diffusion_reorder(const DiffusionBackward& p, void* to) {
  if (p.edges == 0) return;
  switch (p.state) {
    case Scalar::f32: return reorder<float>(p, to);
    case Scalar::f64: return reorder<double>(p, to);
    case Scalar::bf16: return reorder<bf16>(p, to);
    case Scalar::f16: return reorder<f16>(p, to);
  }
}

void diffusion_mix(const DiffusionMix& p) { p.sums == Scalar::f64 ? mix<double>(p) : mix<float>(p); }

}  // namespace contnet_fast::cuda
