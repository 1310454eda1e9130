// Level stage: the launches of a solve in order, and the pointwise ones among them.

#include <algorithm>

#include "cuda/conv/stage/conv_stage.h"
#include "cuda/conv/workspace.h"

namespace contnet_fast::cuda {
namespace {

constexpr int kThreads = 256, kVectors = 2 * kMostChannels;

// Order post: the second norm, the skip scalar and the combination, from the second convolution's result.
KERNEL_MIN_BLOCKS(kThreads, 2)
post_combine(GRID_CONSTANT ConvStage p, int64_t pixels, int64_t each) {
  constexpr int V = 8;
  const int c = p.band.channels;
  const Columns of(c / V);
  const Shared<float> vectors = shared_array<float>(0, kVectors);
  const Shared<float> scratch = shared_array<float>(4 * kVectors, column_scratch(kThreads, c / 4, 8));
  if (p.normed) fold_norm(p.norm, c, c, block_index() == 0, scratch, vectors);
  if (!of.active()) return;
  float scale[V], shift[V];
  UNROLL
  for (int j = 0; j < V; ++j) {
    const int channel = of.group * V + j;
    const float factor = p.parameters[kRowSkip * c + channel] * p.eps;
    scale[j] = (p.normed ? static_cast<float>(vectors[channel]) : 1.f) * factor;
    shift[j] = p.normed ? vectors[c + channel] * factor : 0.f;
  }
  const int64_t first = block_index() * each, last = first + each < pixels ? first + each : pixels;
  for (int64_t pixel = first + of.row; pixel < last; pixel += of.rows) {
    const int64_t i = pixel * c + of.group * V;
    float v[V];
    load_values<V>(v, p.source, p.type, i);
    UNROLL
    for (int j = 0; j < V; ++j) v[j] = v[j] * scale[j] + shift[j];
    combine<V>(v, p, i, true);
    store_values<V>(v, p.target, p.type, i);
  }
}

KERNEL(kThreads)
copy_map(Global<const unsigned char> from, Global<unsigned char> to, int64_t bytes) {
  const int64_t i = (int64_t{1} * block_index() * kThreads + thread_index()) * 16;
  if (i < bytes) store(pointer_cast<uint32_t>(to), i / 4, load<4>(pointer_cast<const uint32_t>(from), i / 4));
}

// ---- a run of steps: what it needs, and its launches

class Run {
 public:
  explicit Run(const ConvSteps& p)
      : p(p), plan(plan_convolution(p)), arena(p.workspace), map_bytes(pixels_of(p) * p.channels * width(p.state)) {
    rates = arena.take(map_bytes * (keeps_any() ? p.stages : 0));
    for (int i = 0; i < 2; ++i) {
      spare[i] = p.states == nullptr && p.tape == nullptr && p.count > 1 ? arena.take(map_bytes) : nullptr;
      partials[i] =
          reinterpret_cast<float*>(arena.take(p.norm == Norm::batch ? 4 * plan.blocks * partial_size(p.channels) : 0));
    }
    for (int i = p.post; i < 3; ++i) scratch[i] = p.tape == nullptr && i < kinds(p) ? arena.take(map_bytes) : nullptr;
  }

  int64_t workspace() const { return arena.taken(); }
  bool fits() const { return plan.bands > 0; }

  void steps() {
    source = p.partials;
    rows = static_cast<int>(input_rows(p));
    const unsigned char* state = static_cast<const unsigned char*>(p.x);
    for (int64_t i = 0; i < p.count; ++i) {
      unsigned char* next = after(i);
      step(i, state, next);
      state = next;
    }
    if (pending.result != nullptr && pending.target != nullptr) rate(pending);
  }

 private:
  bool keeps(int stage) const {
    for (int t = stage + 1; t < p.stages; ++t)
      if (weight(t, stage) != 0.f) return true;
    return false;
  }
  bool keeps_any() const {
    for (int s = 0; s < p.stages; ++s)
      if (keeps(s)) return true;
    return false;
  }
  // of rate j in what follows evaluation t
  float weight(int t, int j) const { return t + 1 < p.stages ? p.rows[t + 1][j] : p.update[j]; }

  unsigned char* tape(int64_t step, int kind, int stage) const {
    return static_cast<unsigned char*>(p.tape) + ((step * kinds(p) + kind) * p.stages + stage) * map_bytes;
  }
  // where the state after a step goes; null: nobody wants it
  unsigned char* after(int64_t i) const {
    if (i == p.count - 1) return static_cast<unsigned char*>(p.y);
    if (p.states != nullptr) return static_cast<unsigned char*>(p.states) + i * map_bytes;
    return p.tape != nullptr ? tape(i + 1, 0, 0) : spare[i % 2];
  }

  // Order post: the second norm of an evaluation and the combination after it, which the next convolution does as it
  // loads.
  struct Pending {
    int evaluation;
    const unsigned char *result, *state;
    unsigned char* target;  // null: nobody else wants it
  };

  void step(int64_t i, const unsigned char* state, unsigned char* next) {
    const unsigned char* input = state;
    for (int j = 0; j < p.stages; ++j) {
      const int evaluation = static_cast<int>((p.first + i) * p.stages) + j;
      const bool last = j == p.stages - 1, end = last && i == p.count - 1;
      unsigned char* middle = p.tape != nullptr ? tape(i, 1, j) : scratch[1];
      unsigned char* target = last ? next : p.tape != nullptr ? tape(i, 0, j + 1) : scratch[0];  // post: null
      convolve(0, evaluation, input, middle, nullptr, true);
      if (j == 0 && p.tape != nullptr && state != tape(i, 0, 0)) copy(state, tape(i, 0, 0));
      if (p.post != 0) {
        unsigned char* result = p.tape != nullptr ? tape(i, 2, j) : scratch[2];
        convolve(1, evaluation, middle, result, nullptr, true);
        pending = {evaluation, result, state, target};
      } else if (target != nullptr) {
        convolve(1, evaluation, middle, target, state, !end);
      }
      input = target;
    }
  }

  // from `norm` of an evaluation (-1: none) to, where there is a state, the combination after it
  ConvStage described(int evaluation, const unsigned char* from, unsigned char* to, const unsigned char* state,
                      int norm) {
    const int stage = evaluation % p.stages;
    ConvStage a{};
    a.band = plan;
    a.source = from;
    a.target = to;
    a.type = p.state;
    a.stage = stage;
    a.eps = p.eps;
    a.map = pixels_of(p) * p.channels;
    a.parameters = a.norm.parameters = parameters(evaluation);
    if (state != nullptr) {
      a.state = state;
      a.keep = keeps(stage);
      if (rates != nullptr) a.rates = rates;
      a.own = weight(stage, stage);
      for (int j = 0; j < stage; ++j) a.rows[j] = weight(stage, j);
    }
    a.normed = norm >= 0 && p.norm != Norm::none;
    if (a.normed) {
      a.norm.moments = p.moments;
      a.norm.at = 2 * evaluation + norm;
      a.norm.count = static_cast<float>(pixels_of(p));
      a.norm.norm_eps = p.norm_eps;
      if (p.norm == Norm::batch) {
        a.norm.partials = source;
        a.norm.rows = rows;
        a.norm.statistics = static_cast<unsigned char*>(p.statistics);
        a.norm.type = p.vectors;
      }
    }
    return a;
  }

  void convolve(int conv, int evaluation, const unsigned char* from, unsigned char* to, const unsigned char* state,
                bool statistics) {
    const bool first = conv == 0 && pending.result != nullptr;
    ConvStage a = first ? described(pending.evaluation, pending.result, to, pending.state, 1)
                        : described(evaluation, from, to, state, p.post != 0 ? conv - 1 : conv);
    if (first && pending.target != nullptr) a.input = pending.target;
    a.combine_first = first;
    a.combine = state != nullptr;
    a.parameters = parameters(evaluation);
    const int64_t matrix = int64_t{9} * p.channels * p.channels * width(p.operand);
    a.packed =
        static_cast<const unsigned char*>(p.packed) + (int64_t{conv} * p.slots + p.slot_list[evaluation]) * matrix;
    a.conv = conv;
    a.relu_before = p.post == 0;
    a.relu_after = p.post != 0;
    float* written = source == partials[0] ? partials[1] : partials[0];
    if (statistics && p.norm == Norm::batch) a.partials = written;
    if (p.operand == Scalar::f32) {
      conv_stage_f32(a, p.tf32 != 0, p.stream);
    } else {
      conv_stage_half(a, p.operand, p.stream);
    }
    if (statistics && p.norm == Norm::batch) {
      source = written;
      rows = plan.blocks;
    }
  }

  void rate(const Pending& of) {
    const int64_t pixels = pixels_of(p), most = 2 * int64_t{p.processors}, blocks = std::min((pixels + 63) / 64, most);
    const int64_t each = (pixels + blocks - 1) / blocks,
                  shared = 4 * (kVectors + column_scratch(kThreads, p.channels / 4, 8));
    launch(Grid{"post_combine", (pixels + each - 1) / each, kThreads, shared, 1, p.stream}, post_combine,
           described(of.evaluation, of.result, of.target, of.state, 1), pixels, each);
  }

  const float* parameters(int evaluation) const {
    return p.parameters + int64_t{p.slot_list[evaluation]} * kParameterRows * p.channels;
  }

  void copy(const unsigned char* from, unsigned char* to) {
    launch(Grid{"copy_map", (map_bytes / 16 + kThreads - 1) / kThreads, kThreads, 0, 1, p.stream}, copy_map, from, to,
           map_bytes);
  }

  const ConvSteps& p;
  BandPlan plan;
  Arena arena;
  int64_t map_bytes;
  unsigned char *rates, *spare[2], *scratch[3] = {};
  float* partials[2];
  const float* source = nullptr;  // the partial statistics that the next launch merges
  int rows = 0;
  Pending pending{};
};

// ---- the forward pass

struct Forward {
  ConvPrepare prepare{};
  ConvSteps steps{};
  int64_t workspace;

  explicit Forward(const ConvStages& p) {
    static_cast<ConvProblem&>(prepare) = static_cast<ConvProblem&>(steps) = p;
    Arena arena(p.workspace);
    std::copy_n(p.nodes, kNodes, prepare.nodes);
    prepare.mix = p.mix;
    prepare.basis = p.basis;
    steps.x = prepare.x = p.x;
    steps.packed = prepare.packed = arena.take(int64_t{18} * p.slots * p.channels * p.channels * width(p.operand));
    prepare.parameters = reinterpret_cast<float*>(arena.take(int64_t{4} * p.slots * kParameterRows * p.channels));
    steps.parameters = prepare.parameters;
    steps.moments = prepare.moments = p.moments;
    if (needs_partials(p))
      prepare.partials = reinterpret_cast<float*>(arena.take(4 * input_rows(p) * partial_size(p.channels)));
    steps.partials = prepare.partials;
    steps.count = p.steps;
    steps.statistics = p.statistics;
    steps.y = p.y;
    steps.states = p.states;
    steps.tape = p.tape;
    workspace = arena.taken();
    if (p.workspace != nullptr) steps.workspace = static_cast<unsigned char*>(p.workspace) + workspace;
  }
};

}  // namespace

StepsPlan plan_steps(const ConvSteps& p) {
  StepsPlan plan{};
  plan.refusal = stage_refusal(p);
  if (plan.refusal != nullptr) return plan;
  const Run run(p);
  if (!run.fits()) plan.refusal = "the operand of one pixel exceeds the shared memory of a block";
  plan.workspace = run.workspace();
  return plan;
}

void conv_steps(const ConvSteps& p) {
  const StepsPlan plan = plan_steps(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_steps: ") + plan.refusal);
  Run(p).steps();
}

StepsPlan plan_stages(const ConvStages& p) {
  StepsPlan plan{};
  plan.refusal = stage_refusal(p);
  if (plan.refusal != nullptr) return plan;
  const Forward forward(p);
  plan = plan_steps(forward.steps);
  plan.workspace += forward.workspace;
  return plan;
}

void conv_stages(const ConvStages& p) {
  const StepsPlan plan = plan_stages(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_stages: ") + plan.refusal);
  const Forward forward(p);
  conv_prepare(forward.prepare);
  conv_steps(forward.steps);
}

}  // namespace contnet_fast::cuda
