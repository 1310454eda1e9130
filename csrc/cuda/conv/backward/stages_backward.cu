// Level stage, backward: the launches of a solve in order, step by step from the last.
//
// A step costs its maps made again where no tape was kept, then for each stage two data gradients and the pointwise
// passes between them, one launch for all weight gradients of the step, and one that adds them up.

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/conv/backward/backward_launch.h"
#include "cuda/conv/workspace.h"

namespace contnet_fast::cuda {
namespace {

class Backward {
 public:
  explicit Backward(const ConvStagesBackward& p) : p(p), arena(p.workspace) {
    static_cast<ConvProblem&>(pass) = p;
    pass.skip = p.nodes[kSkip] != nullptr;
    pass.nodes = static_cast<int32_t>(p.basis);
    pass.moments = p.moments;
    pass.mix = p.mix;
    map = pixels_of(p) * p.channels;
    packed = arena.take(int64_t{18} * p.slots * p.channels * p.channels * width(p.operand));
    pass.parameters = parameters = arena.floats(int64_t{1} * p.slots * kParameterRows * p.channels);
    lay_out_maps();
    lay_out_sums();
    again = arena.taken();
  }

  // beside its own pieces what runs of steps take
  StepsPlan plan() const {
    ConvSteps one = steps(0, 1), all = steps(0, std::max(1, p.steps - 1));
    one.tape = all.states = all.y = &one;  // a plan asks only what is wanted
    StepsPlan plan = plan_steps(one);
    if (plan.refusal == nullptr && gradient_blocks(pass) == 0)
      plan.refusal = "the operand of one pixel exceeds the shared memory of a block";
    if (makes_states()) plan.workspace = std::max(plan.workspace, plan_steps(all).workspace);
    plan.workspace = again + (p.tape == nullptr ? plan.workspace : 0);
    return plan;
  }

  void run() {
    prepare();
    if (makes_states()) make_states();
    const void* costate = p.by_step != 0 ? upstream(p.steps) : p.grad;
    for (int i = p.steps - 1; i >= 0; --i) {
      if (p.tape == nullptr) make_tape(i);
      step(i, costate, p.by_step != 0 ? upstream(i) : nullptr);
      if (weights()) weight_gradients(i);
      costate = p.grad_x;
    }
    if (std::any_of(p.grads, p.grads + kNodes, [](const float* g) { return g != nullptr; })) node_gradients();
  }

 private:
  // ---- what there is

  bool normed() const { return p.norm != Norm::none; }
  bool coupled() const { return p.norm == Norm::batch; }
  bool makes_states() const { return p.tape == nullptr && p.states == nullptr && p.steps > 1; }
  bool pre() const { return p.post == 0; }
  bool weights() const {
    return std::any_of(p.grads, p.grads + kBias2 + 1, [](const float* g) { return g != nullptr; }) ||
           p.grads[kSkip] != nullptr;
  }

  void lay_out_maps() {
    const int64_t bytes = map * width(p.state), operands = map * width(p.operand);
    grads = arena.take(2 * p.stages * operands);
    inputs = arena.take(p.stages * bytes);
    between = arena.take(bytes);
    rate = pre() ? nullptr : arena.take(operands);
    own_tape = p.tape != nullptr ? nullptr : arena.take(kinds(p) * p.stages * bytes);
    made = makes_states() ? arena.take((p.steps - 1) * bytes) : nullptr;
  }

  void lay_out_sums() {
    const int evaluations = pass.evaluations(), c = p.channels;
    rows[0] = normed() ? gradient_blocks(pass) : 0;
    rows[1] = !pre() ? pointwise_blocks(pass) : normed() || pass.skip != 0 ? gradient_blocks(pass) : 0;
    for (int n = 0; n < 2; ++n) {
      sums[n] = arena.floats(int64_t{1} * evaluations * rows[n] * 3 * c);
      folded[n] = arena.floats(int64_t{1} * evaluations * 3 * c);
    }
    if (!weights()) return;
    splits = weight_splits(pass);
    weight_sums = arena.floats(int64_t{2} * p.stages * splits * 9 * c * c);
    bias_sums = arena.floats(int64_t{2} * evaluations * splits * c);
    biases = arena.floats(int64_t{2} * evaluations * c);
  }

  const unsigned char* upstream(int i) const {
    return static_cast<const unsigned char*>(p.grad) + i * map * width(p.state);
  }
  const unsigned char* state(int i) const {  // before step i
    if (i == 0) return static_cast<const unsigned char*>(p.x);
    const void* states = p.states != nullptr ? p.states : made;
    return static_cast<const unsigned char*>(states) + (i - 1) * map * width(p.state);
  }
  const unsigned char* step_tape(int i) const {
    if (p.tape == nullptr) return own_tape;
    return static_cast<const unsigned char*>(p.tape) + i * kinds(p) * p.stages * map * width(p.state);
  }
  const unsigned char* kept(int i, int kind, int stage) const {
    return step_tape(i) + (kind * p.stages + stage) * map * width(p.state);
  }
  unsigned char* grad(int conv, int stage) const { return grads + (conv * p.stages + stage) * map * width(p.operand); }
  float* row(int norm, int evaluation) const {
    return rows[norm] == 0 ? nullptr : sums[norm] + int64_t{1} * evaluation * rows[norm] * 3 * p.channels;
  }

  // ---- maps of the forward pass

  void prepare() const {
    ConvPrepare a{};
    static_cast<ConvProblem&>(a) = p;
    std::copy_n(p.nodes, kNodes, a.nodes);
    a.mix = p.mix;
    a.basis = p.basis;
    a.packed = packed;
    a.parameters = parameters;
    conv_prepare(a);
  }

  // their statistics are known by now, so nothing couples the images
  ConvSteps steps(int first, int count) const {
    ConvSteps a{};
    static_cast<ConvProblem&>(a) = p;
    if (coupled()) a.norm = Norm::known;
    a.first = first;
    a.count = count;
    a.packed = packed;
    a.parameters = parameters;
    a.moments = p.moments;
    if (p.workspace != nullptr) a.workspace = static_cast<unsigned char*>(p.workspace) + again;
    return a;
  }

  void make_tape(int i) const {
    ConvSteps a = steps(i, 1);
    a.x = state(i);
    a.tape = own_tape;
    conv_steps(a);
  }

  void make_states() const {
    ConvSteps a = steps(0, p.steps - 1);
    a.x = p.x;
    a.states = made;
    a.y = made + (p.steps - 2) * map * width(p.state);
    conv_steps(a);
  }

  // ---- a step

  NormSums norm_sums(int norm, int evaluation) const {
    const int n = std::max(norm, 0);
    return {norm, evaluation, p.slot_list[evaluation], coupled() ? rows[n] : 0, row(n, evaluation)};
  }

  void scale(int evaluation, MapOf from, const void* value, void* to, float factor) const {
    rate_gradient(pass, {normed() ? 1 : -1, evaluation, factor, from, value, to, pre() ? nullptr : row(1, evaluation)});
  }

  void through_norm(int norm, int evaluation, MapOf from, const void* value, void* to, bool mask, bool scaled) const {
    NormGradient a{};
    static_cast<NormSums&>(a) = norm_sums(norm, evaluation);
    a.mask = mask;
    a.scaled = scaled;
    a.grad = from;
    a.value = {value, p.state};
    a.target = to;
    norm_gradient(pass, a);
  }

  void convolve(int conv, int evaluation, int norm, const void* from, const void* value, void* to, Scalar type) const {
    float* to_sums = pre() ? row(conv, evaluation) : norm >= 0 ? row(norm, evaluation) : nullptr;
    data_gradient(pass, {conv, norm, evaluation, packed, from, value, to, type, to_sums});
  }

  // through a field's evaluation: from the gradient by its rate, in grads of the second convolution or `rate`, to
  // `between`
  void evaluation_pre(int i, int j) const {
    const int e = i * p.stages + j, norms[2] = {normed() ? 0 : -1, normed() ? 1 : -1};
    void *first = grad(0, j), *middle = coupled() ? between : first;
    convolve(1, e, norms[1], grad(1, j), kept(i, 1, j), middle, coupled() ? p.state : p.operand);
    if (coupled()) through_norm(1, e, {between, p.state}, kept(i, 1, j), first, false, false);
    convolve(0, e, norms[0], first, kept(i, 0, j), between, p.state);
  }

  void evaluation_post(int i, int j) const {
    const int e = i * p.stages + j, norms[2] = {normed() ? 0 : -1, normed() ? 1 : -1};
    through_norm(norms[1], e, {rate, p.operand}, kept(i, 2, j), grad(1, j), true, pass.skip != 0);
    convolve(1, e, norms[0], grad(1, j), kept(i, 1, j), between, p.state);
    through_norm(norms[0], e, {between, p.state}, kept(i, 1, j), grad(0, j), true, false);
    convolve(0, e, -1, grad(0, j), kept(i, 0, j), between, p.state);
  }

  // through the combination before stage j
  void combination(int i, int j, const void* costate, const void* upstream) const {
    StageGradient a{};
    static_cast<NormSums&>(a) = norm_sums(normed() && pre() ? 0 : -1, i * p.stages + j);
    if (!pre()) a.rows = 0;
    a.stage = j;
    a.own = j == 0 ? 1.f : p.eps * p.rows[j][j - 1];
    a.costate_weight = j == 0 ? 1.f : p.eps * p.update[j - 1];
    for (int r = j + 1; r < p.stages; ++r) a.terms[r] = j == 0 ? 1.f : p.eps * p.rows[r][j - 1];
    a.grad = between;
    a.value = kept(i, 0, j);
    a.costate = costate;
    a.upstream = j == 0 ? upstream : nullptr;
    a.inputs = inputs;
    a.target = j == 0 ? p.grad_x : before(j);
    a.target_type = j == 0 ? p.state : p.operand;
    stage_gradient(pass, a);
  }

  void* before(int j) const { return pre() ? grad(1, j - 1) : rate; }  // where the gradient by rate j - 1 goes

  void step(int i, const void* costate, const void* upstream) const {
    const int last = p.stages - 1, kind = kinds(p) - 1;
    scale(i * p.stages + last, {costate, p.state}, kept(i, kind, last), before(p.stages), p.eps * p.update[last]);
    for (int j = last; j >= 0; --j) {
      pre() ? evaluation_pre(i, j) : evaluation_post(i, j);
      combination(i, j, costate, upstream);
      if (!pre() && j > 0) scale(i * p.stages + j - 1, {rate, p.operand}, kept(i, 2, j - 1), rate, 1.f);
    }
  }

  void weight_gradients(int i) const {
    const int first = i * p.stages;
    float* own_biases = bias_sums + int64_t{2} * first * splits * p.channels;
    weight_gradient(pass, {first, splits, step_tape(i), grads, weight_sums, own_biases});
    const int32_t* slots = p.slot_list + first;
    add_up(pass, {p.stages, slots, splits, i == p.steps - 1, weight_sums, {p.grads[kWeight1], p.grads[kWeight2]}});
  }

  void node_gradients() const {
    const int evaluations = pass.evaluations(), c = p.channels;
    NodeGradients a{};
    for (int n = 0; n < 2; ++n) {
      if (rows[n] > 0) a.folds[n] = {sums[n], folded[n], evaluations, rows[n], 3 * c};
      a.sums[n] = folded[n];
    }
    if (weights()) {
      a.folds[2] = {bias_sums, biases, 2 * evaluations, splits, c};
      a.biases = biases;
    }
    a.bias_distance = 2 * c;
    a.distance = 3 * c;
    for (int r = 0; r < kParameterRows; ++r) a.grads[r] = p.grads[kNodeOfRow[r]];
    cuda::node_gradients(pass, a);
  }

  const ConvStagesBackward& p;
  Pass pass{};
  Arena arena;
  int64_t map, again;  // values of a map of the batch; where the workspace of runs of steps begins
  unsigned char *packed, *grads, *inputs, *between, *rate, *own_tape, *made;
  float *parameters, *sums[2], *folded[2], *weight_sums, *bias_sums, *biases;
  int32_t rows[2], splits;
};

}  // namespace

StepsPlan plan_stages_backward(const ConvStagesBackward& p) {
  ConvSteps one{};
  static_cast<ConvProblem&>(one) = p;
  one.count = 1;
  const StepsPlan plan = plan_steps(one);  // sizes that it refuses are not to be divided by
  return plan.refusal != nullptr ? plan : Backward(p).plan();
}

void conv_stages_backward(const ConvStagesBackward& p) {
  const StepsPlan plan = plan_stages_backward(p);
  if (plan.refusal != nullptr) throw std::runtime_error(std::string("conv_stages_backward: ") + plan.refusal);
  Backward(p).run();
}

}  // namespace contnet_fast::cuda
