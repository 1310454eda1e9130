// The forward pass: every image by one thread, or the batch through one convolution at a time.
#include "cpu/conv/conv_pass.h"

namespace contnet_fast {
namespace {

// Places of a pass: maps that are kept for backward, and working memory for `images` images.
template <typename T>
class Work {
 public:
  Work(const Pass<T>& pass, T* kept, int64_t images) {
    const SolveSpec& spec = pass.spec;
    const int64_t map = spec.map.map(), batch = spec.batch * map;
    const bool all = spec.keep == Keep::everything;
    int count = 4 + (pass.combines_later() && !all);
    for (int s = 0; s < spec.stages; ++s) count += pass.keeps_rate(s);
    memory_.resize(count * images * map);
    T* next = memory_.data();
    auto work = [&] {
      const auto maps = Maps<T>::working(next, images > 1 ? map : 0);
      next += images * map;
      return maps;
    };
    auto keep = [&] {
      const auto maps = Maps<T>::working(kept, map);
      kept += batch;
      return maps;
    };
    const Maps<T> state = work(), input = work(), first = work(),
                  second = pass.combines_later() && !all ? work() : state;
    places.total = work();
    for (int s = 0; s < spec.stages; ++s) places.rate.push_back(pass.keeps_rate(s) ? work() : Maps<T>{});
    places.state.push_back(state);
    for (int i = 1; i < spec.n_steps; ++i) places.state.push_back(spec.keep == Keep::steps || all ? keep() : state);
    places.state.push_back(state);
    for (int j = 0; j < spec.evaluations(); ++j)
      places.input.push_back(j % spec.stages == 0 ? places.state[j / spec.stages] : all ? keep() : input);
    for (int j = 0; j < spec.evaluations(); ++j) places.first.push_back(all ? keep() : first);
    for (int j = 0; j < spec.evaluations(); ++j) places.second.push_back(all && spec.post ? keep() : second);
  }
  Places<T> places;

 private:
  Buffer<T> memory_;
};

template <typename T, typename Range>
void run(Pass<T>& pass, const Places<T>& at, const Range& range, const ForwardCall<T>& call) {
  const SolveSpec& spec = pass.spec;
  const size_t outs = call.out.size();
  range.over_images([&](int64_t b) { pass.kernels.load(pass.g, call.x.at(b), at.state[0].writable(b)); });
  for (int i = 0; i < spec.n_steps; ++i) {
    if (outs > 1) range.over_images([&](int64_t b) { pass.kernels.store(pass.g, at.state[i](b), call.out[i].at(b)); });
    for (int s = 0; s < spec.stages; ++s) pass.evaluate(range, at, i, s, call.statistics);
  }
  range.over_images(
      [&](int64_t b) { pass.kernels.store(pass.g, at.state[spec.n_steps](b), call.out[outs - 1].at(b)); });
}

}  // namespace

template <typename T>
void conv_solve(const SolveSpec& spec, const ConvKernels<T>& kernels, const ForwardCall<T>& call) {
  // what backward needs of the weights is made with the rest, and found again
  Thetas<T> thetas(spec, kernels, call.nodes, call.weight_ids, spec.keep != Keep::nothing && call.weight_ids[0].owner);
  Pass<T> pass(spec, kernels, thetas, call.moments, call.known_moments);
  // image by image only where that keeps the threads busy to the end, and where weights are not better read for several
  const int64_t threads = at::get_num_threads(), rounds = (spec.batch + threads - 1) / threads;
  const bool even = rounds * threads * 8 <= spec.batch * 9;
  const WholeBatch batch(spec.batch, spec.map);
  if (spec.by_stage || !thetas.all() || !even || batch.together()) {
    const Work<T> work(pass, call.kept, spec.batch);
    run(pass, work.places, batch, call);
    if (call.values) *call.values = pass.values;
    return;
  }
  at::parallel_for(0, spec.batch, 1, [&](int64_t from, int64_t to) {
    const Work<T> work(pass, call.kept, 1);
    for (int64_t b = from; b < to; ++b) run(pass, work.places, OneImage{b, spec.map}, call);
  });
}

template void conv_solve(const SolveSpec&, const ConvKernels<float>&, const ForwardCall<float>&);
template void conv_solve(const SolveSpec&, const ConvKernels<double>&, const ForwardCall<double>&);

}  // namespace contnet_fast
