// The backward pass: gradients of the discrete solve, the batch through one convolution at a time, steps in reverse.
//
// Adjoint of a step: g_s = h b_s y' + sum_{r > s} h a_rs u'_r is the gradient of rate s, u'_s what the field makes of
// it, and y' + sum_s u'_s the gradient of the state before the step.
#include "cpu/conv/conv_moments.h"
#include "cpu/conv/conv_pass.h"
#include "cpu/conv/conv_weight_sums.h"

namespace contnet_fast {
namespace {

// c0 g + c1 z + c2: the gradient through a norm, per channel; for each image where moments are its own
template <typename T>
struct NormGradient {
  Buffer<T> memory;
  int64_t rows = 1;
  int padded = 0;
  void resize(int64_t count, int channels) {
    rows = count, padded = channels;
    memory.resize(3 * rows * padded);
  }
  T* at(int which, int64_t b) const { return memory.data() + (which * rows + (rows > 1 ? b : 0)) * padded; }
};

template <typename T>
class Backward {
 public:
  Backward(const SolveSpec& spec, const ConvKernels<T>& kernels, const BackwardCall<T>& call)
      : spec_(spec),
        g_(spec.map),
        kernels_(kernels),
        call_(call),
        thetas_(spec, kernels, call.nodes, call.weight_ids, true),
        pass_(Pass<T>::replay(spec, kernels, thetas_, call.moments)),
        range_(spec.batch, spec.map),
        sums_(spec.batch, spec.map, 2) {
    for (int n = 0; n < 2; ++n) through_[n].resize(spec.norm == Norm::sample ? spec.batch : 1, g_.padded);
    place();
  }

  void run() {
    const int n = spec_.n_steps;
    range_.over_images([&](int64_t b) { kernels_.load(g_, call_.out_grad.back().at(b), state_grad_.writable(b)); });
    if (spec_.keep == Keep::input && n > 1) states();
    for (int i = n - 1; i >= 0; --i) {
      if (i == 0) range_.over_images([&](int64_t b) { kernels_.load(g_, call_.x.at(b), at_.state[0].writable(b)); });
      if (spec_.keep != Keep::everything)
        for (int s = 0; s < spec_.stages; ++s) pass_.evaluate(range_, at_, i, s, nullptr);
      for (int s = spec_.stages - 1; s >= 0; --s) through_evaluation(i, s);
      range_.over_images([&](int64_t b) { finish_step(i, b); });
    }
    flush();
    range_.over_images([&](int64_t b) { kernels_.store(g_, state_grad_(b), call_.x_grad.at(b)); });
  }

 private:
  // ---- memory ---------------------------------------------------------------------------------------------------

  void place() {
    const int64_t map = g_.map(), batch = spec_.batch * map;
    const bool all = spec_.keep == Keep::everything, redo = spec_.keep == Keep::input;
    const int stages = spec_.stages, steps = spec_.n_steps;
    int count = 4 + stages + (redo ? steps - 1 : 0) + (all ? 0 : stages * (spec_.post ? 3 : 2) - 1);
    for (int s = 0; s < stages; ++s) count += !all && pass_.keeps_rate(s);
    memory_.resize(count * batch);
    T* next = memory_.data();
    auto work = [&] { return Maps<T>::working(std::exchange(next, next + batch), map); };
    const T* kept = call_.kept;
    auto keep = [&] { return Maps<T>::saved(std::exchange(kept, kept + batch), map); };
    state_grad_ = work(), rate_grad_ = work(), middle_ = work();
    for (int s = 0; s < stages; ++s) input_grad_.push_back(work());
    for (int s = 0; s < stages; ++s) at_.rate.push_back(!all && pass_.keeps_rate(s) ? work() : Maps<T>{});
    at_.state.push_back(work());
    for (int i = 1; i < steps; ++i) at_.state.push_back(redo ? work() : keep());
    std::vector<Maps<T>> input(stages), first(stages), second(stages);
    if (!all)
      for (int s = 0; s < stages; ++s) {
        if (s > 0) input[s] = work();
        first[s] = work();
        if (spec_.post) second[s] = work();
      }
    for (int j = 0; j < spec_.evaluations(); ++j) {
      const int s = j % stages;
      at_.input.push_back(s == 0 ? at_.state[j / stages] : all ? keep() : input[s]);
    }
    for (int j = 0; j < spec_.evaluations(); ++j) at_.first.push_back(all ? keep() : first[j % stages]);
    for (int j = 0; j < spec_.evaluations() && spec_.post; ++j) at_.second.push_back(all ? keep() : second[j % stages]);
  }

  // The states again, where only the input was kept.
  void states() {
    SolveSpec forward = spec_;
    forward.keep = Keep::steps;
    forward.by_stage = true;
    ForwardCall<T> call{};
    call.x = call_.x;
    std::copy_n(call_.nodes, kNodes, call.nodes);
    std::copy_n(call_.weight_ids, 2, call.weight_ids);
    const int64_t map = g_.map();
    Buffer<T> last(spec_.batch * map);
    call.out = {ImageBatch<T>{last.data(), map, 1, int64_t(g_.width) * g_.padded, g_.padded}};
    call.kept = spec_.n_steps > 1 ? at_.state[1].owned : nullptr;
    call.known_moments = call_.moments;
    conv_solve(forward, kernels_, call);
  }

  // ---- one evaluation -------------------------------------------------------------------------------------------

  bool wants(Node n) const { return call_.node_grads[n] != nullptr; }

  void through_evaluation(int i, int s) {
    const int j = pass_.evaluation(i, s);
    if (spec_.grid.slot_of[j] != slot_) flush();
    slot_ = spec_.grid.slot_of[j];
    const Theta<T>& theta = thetas_.at(j);
    gain_ = theta.gain_value;
    pass_.ready_all(j);
    const bool normed = spec_.norm != Norm::none;
    range_.over_images([&](int64_t b) {
      if (!spec_.post && s + 1 < spec_.stages && normed) through_norm(i, s + 1, b);
      combine_rate(s, b);
      if (spec_.post) sum_rate(j, b);
    });
    if (spec_.post) finish_norm(j, 1);
    through_convolution(j, 1, at_.first[j], theta.gain, middle_);
    if (normed) finish_norm(j, spec_.post ? 0 : 1);
    through_convolution(j, 0, at_.input[j], nullptr, input_grad_[s]);
    if (normed && !spec_.post) finish_norm(j, 0);
  }

  void combine_rate(int s, int64_t b) {
    Destination<T> d;
    d.out = rate_grad_.writable(b);
    d.own = T(0);
    if (spec_.update[s] != 0.0) d.add(state_grad_(b), static_cast<T>(spec_.update[s]));
    for (int r = s + 1; r < spec_.stages; ++r)
      if (spec_.rows[r][s] != 0.0) d.add(input_grad_[r](b), static_cast<T>(spec_.rows[r][s]));
    kernels_.combine(g_, d, 0, g_.height);
  }

  // order "pre": what is left of stage s, the gradient through its first norm, in place
  void through_norm(int i, int s, int64_t b) {
    const int j = pass_.evaluation(i, s);
    T* grad = input_grad_[s].writable(b);
    kernels_.write(g_, norm_operand(grad, at_.input[j](b), 0, b), grad, 0, g_.height);
  }

  Operand<T> norm_operand(const T* grad, const T* map, int norm, int64_t b) const {
    Operand<T> in;
    in.map = grad;
    in.scale = through_[norm].at(0, b);
    in.other = map;
    in.other_scale = through_[norm].at(1, b);
    in.shift = through_[norm].at(2, b);
    return in;
  }

  void finish_step(int i, int64_t b) {
    if (!spec_.post && spec_.norm != Norm::none) through_norm(i, 0, b);
    Destination<T> d;
    d.out = state_grad_.writable(b);
    d.own = T(0);
    d.add(state_grad_(b), T(1));
    for (int s = 0; s < spec_.stages; ++s) d.add(input_grad_[s](b), T(1));
    kernels_.combine(g_, d, 0, g_.height);
    if (call_.out_grad.size() == 1) return;
    T* more = rate_grad_.writable(b);  // free here
    kernels_.load(g_, call_.out_grad[i].at(b), more);
    Destination<T> sum;
    sum.out = state_grad_.writable(b);
    sum.own = T(0);
    sum.add(state_grad_(b), T(1)), sum.add(more, T(1));
    kernels_.combine(g_, sum, 0, g_.height);
  }

  // Sums of the gradient `of` a norm's result with the norm's input z: sum g and sum g (z - mean).
  void emit_sums(Result<T>& r, int j, int norm, const Maps<T>& z, int64_t b) {
    const Moments<T> m = pass_.moments(j, norm, thetas_.at(j));
    r.sums = Sums::gradient;
    r.with = z(b);
    r.center = m.mean + b * m.stride;
    r.partial = pass_.partial.data() + b * pass_.partial_size();
  }

  void sum_rate(int j, int64_t b) {
    Result<T> r;
    emit_sums(r, j, 1, at_.second[j], b);
    for (int u = 0; u < g_.units; ++u) kernels_.sum(g_, rate_grad_(b), r, u, {0, g_.padded});
  }

  // Gradient through convolution c (0 or 1), with that of its weights on the way.
  void through_convolution(int j, int c, const Maps<T>& z, const T* gain, const Maps<T>& out) {
    const Theta<T>& theta = thetas_.at(j);
    const bool normed = spec_.norm != Norm::none, weights = wants(c ? kWeight2 : kWeight1) || (c && wants(kSkip));
    const bool biases = wants(c ? kBias2 : kBias1) || (c && wants(kSkip));
    sums_.over_parts([&](int64_t part, const Share& share) {
      Operand<T> activations[kTogether];  // what the convolution read
      convolve(kernels_, g_, share, [&](int64_t b, ConvJob<T>& job) {
        const T* grad = c ? rate_grad_(b) : middle_(b);
        const int norm = spec_.post ? c : 1;  // the norm behind this convolution
        if (!spec_.post && c) {
          job.in.map = grad;
        } else if (normed) {
          job.in = norm_operand(grad, (c ? at_.second : at_.first)[j](b), norm, b);
        } else {
          job.in.map = grad;
          job.in.scale = spec_.post && c ? theta.gain : nullptr;
          job.in.other = spec_.post ? (c ? at_.second : at_.first)[j](b) : nullptr;
        }
        job.in.mask_by_other = spec_.post;
        Operand<T>& activation = activations[b - share.image];
        if (spec_.post && c == 0)
          activation.map = z(b);
        else
          activation = pass_.normalised(z(b), spec_.post ? 0 : c, theta, b, !spec_.post);
        if (weights) job.activation = &activation, job.weight_grad = sums_.weights(part, c);
        if (biases) job.bias_grad = sums_.bias(part, c);
        job.weights = theta.backward[c];
        Result<T>& r = job.result;
        r.destinations = 1;
        r.destination[0].out = out.writable(b);
        if (!spec_.post) {
          r.scale = gain;
          r.mask = z(b);
          r.mask_scale = activation.scale;
          r.mask_shift = activation.shift;
        }
        if (normed && !(spec_.post && c == 0)) emit_sums(r, j, spec_.post ? 0 : c, z, b);
      });
    });
  }

  // ---- norms ----------------------------------------------------------------------------------------------------

  // From the sums of a norm's gradient: that of its parameters, and the affine function that goes through it.
  void finish_norm(int j, int norm) {
    const Theta<T>& theta = thetas_.at(j);
    const Moments<T> m = pass_.moments(j, norm, theta);
    const int padded = g_.padded;
    const double gain = spec_.post && norm == 1 ? theta.gain_value : 1.0;
    const double pixels = static_cast<double>(g_.height) * g_.width;
    std::vector<double> beta(padded), gamma(padded), sum(padded), with(padded);
    for (int64_t b = 0; b < spec_.batch; ++b) {
      std::fill(sum.begin(), sum.end(), 0.0), std::fill(with.begin(), with.end(), 0.0);
      for (int u = 0; u < g_.units; ++u) {
        const T* p = pass_.partial.data() + b * pass_.partial_size() + int64_t(u) * 2 * padded;
        for (int c = 0; c < padded; ++c) sum[c] += p[c], with[c] += p[padded + c];
      }
      const T* rstd = m.rstd + b * m.stride;
      for (int c = 0; c < padded; ++c) {
        with[c] *= rstd[c];
        beta[c] += sum[c], gamma[c] += with[c];
      }
      if (spec_.norm == Norm::sample) set_through(theta, m, norm, b, gain, gain, pixels, sum, with);
    }
    if (spec_.gather)
      through_all_ranks(theta, m, norm, gain, pixels * spec_.batch, beta, gamma);
    else if (spec_.norm != Norm::sample)
      set_through(theta, m, norm, 0, gain, gain, pixels * spec_.batch, beta, gamma);
    add_nodal(norm ? kBeta2 : kBeta1, beta, gain);
    add_nodal(norm ? kGamma2 : kGamma1, gamma, gain);
    if (!spec_.post || norm == 0 || !wants(kSkip)) return;
    double skip = 0.0;
    for (int c = 0; c < g_.channels; ++c) skip += theta.gamma[1][c] * gamma[c] + theta.beta[1][c] * beta[c];
    add_skip(skip);
  }

  // Through a norm by sums over what shares moments: `pixels`. A factor of g comes apart: `gain`, and for sums of g
  // `of_sums`, which is 1 where they have it already.
  void set_through(const Theta<T>& theta, const Moments<T>& m, int norm, int64_t b, double gain, double of_sums,
                   double pixels, const std::vector<double>& sum, const std::vector<double>& with) {
    const Through<T> to{through_[norm].at(0, b), through_[norm].at(1, b), through_[norm].at(2, b)};
    const T *gamma = theta.gamma[norm], *mean = m.mean + b * m.stride, *rstd = m.rstd + b * m.stride;
    const int group = spec_.norm == Norm::sample ? g_.channels / spec_.groups : 1;
    for (int c = 0; c < g_.padded; ++c) {
      double plain = 0.0, along = 0.0;
      if (spec_.dynamic() && c < g_.channels) {
        for (int k = c / group * group; k < c / group * group + group; ++k)
          plain += gamma[k] * sum[k], along += gamma[k] * with[k];
        plain /= pixels * group, along /= pixels * group;
      }
      to.set(c, gain * gamma[c], of_sums * plain, of_sums * along, mean[c], rstd[c]);
    }
  }

  // set_through by the sums of all ranks: a message of (count, sum g, sum g x), as the reference sends it
  void through_all_ranks(const Theta<T>& theta, const Moments<T>& m, int norm, double gain, double pixels,
                         const std::vector<double>& sum, const std::vector<double>& with) {
    std::vector<double> row{pixels}, all_sum(g_.padded), all_with(g_.padded);
    for (int c = 0; c < g_.channels; ++c) row.push_back(gain * sum[c]);
    for (int c = 0; c < g_.channels; ++c) row.push_back(gain * with[c]);
    const std::vector<double> rows = spec_.gather(row);
    double all = 0.0;
    for (size_t r = 0; r < rows.size(); r += row.size()) {
      all += rows[r];
      for (int c = 0; c < g_.channels; ++c) all_sum[c] += rows[r + 1 + c], all_with[c] += rows[r + 1 + g_.channels + c];
    }
    set_through(theta, m, norm, 0, gain, 1.0, std::max(all, 1.0), all_sum, all_with);
  }

  // ---- nodes ----------------------------------------------------------------------------------------------------

  void add_nodal(Node node, const std::vector<double>& value, double factor) {
    T* grad = call_.node_grads[node];
    if (grad == nullptr) return;
    for (const auto& [k, w] : spec_.grid.slots[slot_])
      for (int c = 0; c < g_.channels; ++c) grad[int64_t(k) * g_.channels + c] += static_cast<T>(w * factor * value[c]);
  }

  void add_skip(double value) {
    for (const auto& [k, w] : spec_.grid.slots[slot_])
      call_.node_grads[kSkip][k] += static_cast<T>(w * spec_.eps * value);
  }

  // The sums of the slot so far, to the nodes.
  void flush() {
    if (slot_ < 0) return;
    const int64_t size = int64_t(9) * g_.channels * g_.channels;
    sums_.merge();
    const bool skip = !spec_.post && wants(kSkip);
    Buffer<T> grads(2 * size);
    const bool wanted[2] = {wants(kWeight1), wants(kWeight2) || skip};
    over_output_channels(g_, 2, [&](int64_t c, Channels channels) {
      T* const taps = thread_scratch<T>(int64_t(9) * g_.channels * g_.padded);
      if (wanted[c]) kernels_.unpack(g_, channels, sums_.weights(0, c), grads.data() + c * size, taps);
    });
    for (int c = 0; c < 2; ++c)
      if (wanted[c]) add_slot(c ? kWeight2 : kWeight1, grads.data() + c * size, size, factor(c));
    for (int c = 0; c < 2; ++c) add_slot(c ? kBias2 : kBias1, sums_.bias(0, c), g_.channels, factor(c));
    if (skip) {
      Buffer<T> combined(size), biases(g_.padded);
      const bool biased = call_.nodes[kBias2] != nullptr;
      const T* bias =
          biased ? combine_nodes(spec_.grid.slots[slot_], call_.nodes[kBias2], g_.channels, g_.channels, biases.data())
                 : nullptr;
      const T* weights = combine_nodes(spec_.grid.slots[slot_], call_.nodes[kWeight2], size, size, combined.data());
      double value = 0.0;
      for (int64_t i = 0; i < size; ++i) value += static_cast<double>(weights[i]) * grads.data()[size + i];
      for (int c = 0; biased && c < g_.channels; ++c) value += static_cast<double>(bias[c]) * sums_.bias(0, 1)[c];
      add_skip(value);
    }
    sums_.clear_merged();
    slot_ = -1;
  }

  // In order "pre" the gain comes after the second convolution, and its sums are taken without it.
  T factor(int c) const { return c && !spec_.post ? gain_ : T(1); }

  void add_slot(Node node, const T* value, int64_t size, T factor) {
    T* grad = call_.node_grads[node];
    if (grad == nullptr) return;
    for (const auto& [k, w] : spec_.grid.slots[slot_]) {
      const T by = static_cast<T>(w) * factor;
      for (int64_t i = 0; i < size; ++i) grad[k * size + i] += by * value[i];
    }
  }

  const SolveSpec& spec_;
  const Geometry& g_;
  const ConvKernels<T>& kernels_;
  const BackwardCall<T>& call_;
  Thetas<T> thetas_;
  Pass<T> pass_;
  WholeBatch range_;
  WeightSums<T> sums_;
  NormGradient<T> through_[2];
  Places<T> at_;
  Buffer<T> memory_;
  Maps<T> state_grad_, rate_grad_, middle_;
  std::vector<Maps<T>> input_grad_;
  int slot_ = -1;
  T gain_ = T(1);
};

}  // namespace

template <typename T>
void conv_solve_backward(const SolveSpec& spec, const ConvKernels<T>& kernels, const BackwardCall<T>& call) {
  Backward<T>(spec, kernels, call).run();
}

template void conv_solve_backward(const SolveSpec&, const ConvKernels<float>&, const BackwardCall<float>&);
template void conv_solve_backward(const SolveSpec&, const ConvKernels<double>&, const BackwardCall<double>&);

}  // namespace contnet_fast
