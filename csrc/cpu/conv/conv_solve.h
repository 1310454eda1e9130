// Integration of dx/dt = eps * R(x, theta(t)) for a batch of images, forward and backward. No torch types.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "cpu/conv/conv_kernels.h"
#include "runtime/conv_field.h"
#include "runtime/export.h"
#include "runtime/time_grid.h"

namespace contnet_fast {

enum class Norm { none, batch, sample };  // sample: group or layer norm

// The rows of all ranks, one after another in their order, from that of this one: a message, which each rank sends.
using Gather = std::function<std::vector<double>(const std::vector<double>&)>;

// A solve, as data.
struct SolveSpec {
  int64_t batch;
  Geometry map;
  bool post;
  Norm norm;
  int groups;
  double eps, norm_eps;
  bool batch_statistics;
  Gather gather;  // of the ranks that share a batch; null for one process
  int n_steps, stages;
  std::vector<std::vector<double>> rows;  // h * a_sj
  std::vector<double> update;             // h * b_j
  TimeGrid grid;
  Keep keep;
  bool by_stage;  // the batch goes through one convolution at a time

  int evaluations() const { return n_steps * stages; }
  bool dynamic() const { return norm == Norm::sample || batch_statistics; }  // moments come from the maps
  int64_t moment_rows() const { return !dynamic() ? 0 : batch_statistics ? 1 : batch; }
  int64_t kept_maps() const {
    const int64_t states = n_steps - 1, inputs = int64_t(n_steps) * (stages - 1), all = evaluations();
    return keep == Keep::steps ? states : keep == Keep::everything ? states + inputs + all * (post ? 2 : 1) : 0;
  }
};

template <typename T>
struct ImageBatch {  // [images] in any strides
  T* data;
  int64_t image, channel, row, column;
  Image<T> at(int64_t b) const { return {data + b * image, channel, row, column}; }
};

// Whose weights these are, so that what is made from them can be used again; without owner it is not.
struct WeightOwner {
  virtual ~WeightOwner() = default;
  virtual const void* storage() const = 0;  // an address that names nothing else while this is there
  virtual bool gone() const = 0;
};
struct WeightId {
  std::shared_ptr<const WeightOwner> owner;
  const void* data = nullptr;
  int64_t version = 0;
};

template <typename T>
struct ForwardCall {
  ImageBatch<const T> x;
  WeightId weight_ids[2];
  const T* nodes[kNodes];          // contiguous [basis, ...] or null
  std::vector<ImageBatch<T>> out;  // the state at t = 1, or at all grid points
  T* kept;                         // [kept_maps][batch][map]
  T* moments;                      // [evaluations][2 norms][mean, 1 / std][moment_rows][padded]
  T* statistics;                   // [evaluations][mean1, var1, mean2, var2][channels], unbiased
  const T* known_moments;          // read in place of them; null: they are written
  double* values;                  // of a channel on all ranks; null where that is not asked for
};

template <typename T>
struct BackwardCall {
  ImageBatch<const T> x;
  WeightId weight_ids[2];
  const T* nodes[kNodes];
  std::vector<ImageBatch<const T>> out_grad;  // as out
  const T* kept;
  const T* moments;
  ImageBatch<T> x_grad;
  T* node_grads[kNodes];  // null where none is wanted
};

template <typename T>
void conv_solve(const SolveSpec&, const ConvKernels<T>&, const ForwardCall<T>&);
template <typename T>
void conv_solve_backward(const SolveSpec&, const ConvKernels<T>&, const BackwardCall<T>&);

// Let go of all transformed weights that are kept for later calls.
CONTNET_FAST_API void forget_packed_weights();

}  // namespace contnet_fast
