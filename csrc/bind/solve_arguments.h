// What the ops of a solve of the convolutional field are called with, read in one place for every backend: words become
// enums, the time grid becomes slots, and both are checked. A backend implements `SolveOp` and `SolveBackwardOp`.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind/schema_arguments.h"
#include "runtime/conv_field.h"

namespace contnet_fast {

enum class FieldOrder { pre, post };
enum class FieldNorm { none, batch, group, layer };

constexpr Word<FieldOrder> kOrders[] = {{"pre", FieldOrder::pre}, {"post", FieldOrder::post}};
constexpr Word<FieldNorm> kNorms[] = {
    {"none", FieldNorm::none}, {"batch", FieldNorm::batch}, {"group", FieldNorm::group}, {"layer", FieldNorm::layer}};

struct SolveArguments {
  const char* op;  // for messages
  FieldOrder order;
  FieldNorm norm;
  int64_t groups;  // of the norm within an image; layer norm: 1
  double eps, norm_eps;
  bool batch_statistics;  // the norm takes them from the batch
  std::string group;      // whose batches that is, with others: the name of a process group
  int64_t ranks;          // in it
  TimeGrid grid;
  int64_t n_steps, stages;
  at::ArrayRef<double> rows, update;  // [stage, stage] h * a_sj, [stage] h * b_j
  Keep keep;
  Level level;
  Products products;
  const char *level_word, *norm_word;

  int64_t evaluations() const { return n_steps * stages; }
  bool sample_norm() const { return norm == FieldNorm::group || norm == FieldNorm::layer; }
};

// Values of one basis function in a node.
inline int64_t node_size(int node, int64_t channels) {
  return is_weight(node) ? 9 * channels * channels : node == kSkip ? 1 : channels;
}

inline void check_tensors(const char* op, const at::Tensor& x, const OptionalTensors& nodes) {
  TORCH_CHECK(x.dim() == 4, op, ": x of ", x.dim(), " dimensions");
  TORCH_CHECK(nodes.size() == kNodes && nodes.get(kWeight1).has_value() && nodes.get(kWeight2).has_value(), op, ": ",
              nodes.size(), " nodes, or no weights");
  const int64_t basis = nodes.get(kWeight1)->size(0);
  for (int i = 0; i < kNodes; ++i) {
    const std::optional<at::Tensor> node = nodes.get(i);
    if (!node.has_value()) continue;
    TORCH_CHECK(node->numel() == basis * node_size(i, x.size(1)), op, ": node ", i, " of ", node->sizes());
    TORCH_CHECK(node->device() == x.device(), op, ": node ", i, " on ", node->device(), ", x on ", x.device());
  }
}

// Words (order, norm[, group]), integers (channels, groups, bias, skip[, ranks]), numbers (eps, norm_eps).
inline SolveArguments read_arguments(const char* op, const at::Tensor& x, const OptionalTensors& nodes,
                                     const SchemaArguments& given) {
  const size_t more = given.words.size() == 3 ? 1 : 0;
  TORCH_CHECK_VALUE(given.words.size() == 2 + more && given.integers.size() == 4 + more && given.numbers.size() == 2,
                    op, ": words, integers, numbers: got ", given.words.size(), ", ", given.integers.size(), ", ",
                    given.numbers.size(), ", accepted: 2, 4, 2, and across ranks 3, 5, 2");
  const auto& [words, integers, numbers, training, counts, cells, weights, rows, update, n_steps, keep, level,
               products] = given;
  const int64_t groups = integers[1];
  SolveArguments a{};
  a.op = op;
  a.order = read_word(op, "order", words[0], kOrders);
  a.norm = read_word(op, "norm", words[1], kNorms);
  a.keep = read_word(op, "keep", keep, kKeeps);
  a.level = read_word(op, "level", level, kLevels);
  a.products = read_word(op, "products", products, kProducts);
  a.level_word = word_of(a.level, kLevels);
  a.norm_word = word_of(a.norm, kNorms);
  check_tensors(op, x, nodes);
  TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, op, ": ", groups, " groups of ", x.size(1), " channels");
  a.groups = a.norm == FieldNorm::layer ? 1 : groups;
  a.eps = numbers[0];
  a.norm_eps = numbers[1];
  a.batch_statistics = training && a.norm == FieldNorm::batch;
  a.group = more && a.batch_statistics ? words[2] : "";
  a.ranks = a.group.empty() ? 1 : integers[4];
  a.n_steps = n_steps;
  a.stages = static_cast<int64_t>(update.size());
  a.rows = rows;
  a.update = update;
  a.grid = given.time_grid(op, nodes.get(kWeight1)->size(0));
  return a;
}

struct SolveResults {
  at::Tensor y, statistics, moments, kept;
};
// What a backend implements. `wanted`: the nodes that gradients are asked for.
using Solve = SolveResults (*)(const at::Tensor& x, const OptionalTensors& nodes, const SolveArguments&,
                               bool return_steps);
using SolveBackward = std::vector<at::Tensor> (*)(const at::Tensor& grad, const at::Tensor& x,
                                                  const OptionalTensors& nodes, const SolveArguments&,
                                                  const at::Tensor& moments, const at::Tensor& kept,
                                                  at::IntArrayRef wanted);

using OpResults = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;  // y, statistics, saved: moments, kept

// The ops as their schemas have them (contnet_fast/ops/schemas.py). `Backend` has their name, `solve` and
// `solve_backward`.
template <typename Backend>
OpResults conv_solve_op(const at::Tensor& x, const OptionalTensors& nodes, const OptionalTensors& operands,
                        std::vector<std::string> words, at::IntArrayRef integers, at::ArrayRef<double> numbers,
                        bool training, at::IntArrayRef counts, at::IntArrayRef cells, at::ArrayRef<double> weights,
                        at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps, std::string keep,
                        std::string level, std::string products, bool return_steps) {
  const SchemaArguments given{words, integers, numbers, training, counts, cells,   weights,
                              rows,  update,   n_steps, keep,     level,  products};
  const SolveArguments a = read_arguments(Backend::op, x, nodes, given);
  SolveResults r = Backend::solve(x, nodes, a, return_steps);
  return {r.y, r.statistics, {r.moments, r.kept}};
}

template <typename Backend>
std::vector<at::Tensor> conv_solve_backward_op(const at::Tensor& grad, const at::Tensor& x,
                                               const OptionalTensors& nodes, const OptionalTensors& operands,
                                               std::vector<std::string> words, at::IntArrayRef integers,
                                               at::ArrayRef<double> numbers, bool training, at::IntArrayRef counts,
                                               at::IntArrayRef cells, at::ArrayRef<double> weights,
                                               at::ArrayRef<double> rows, at::ArrayRef<double> update, int64_t n_steps,
                                               std::string keep, std::string level, std::string products,
                                               at::TensorList saved, at::IntArrayRef wanted) {
  const SchemaArguments given{words, integers, numbers, training, counts, cells,   weights,
                              rows,  update,   n_steps, keep,     level,  products};
  const SolveArguments a = read_arguments(Backend::backward_op, x, nodes, given);
  TORCH_CHECK(saved.size() == 2, Backend::backward_op, ": ", saved.size(), " saved tensors, accepted: 2");
  return Backend::solve_backward(grad, x, nodes, a, saved[0], saved[1], wanted);
}

}  // namespace contnet_fast
