// Registers the C++ implementations of the ops, and the Python module with build information and the log of runs.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "contnet_fast_build.h"
#include "cpu/conv/conv_solve.h"
#include "bind/leaves.h"
#include "bind/plans.h"
#include "bind/step.h"
#include "bind/tile_products.h"
#include "runtime/pool.h"
#include "cpu/combine/rk_combine.h"
#include "runtime/isa.h"
#include "runtime/runs.h"
#include "runtime/working_tensor.h"

namespace contnet_fast {
namespace {

struct Kernels {
  CombineBlock combine;
  CompensateBlock compensate;
};

Kernels kernels() {
#ifdef CONTNET_FAST_X86
  if (instruction_set() >= Isa::avx512) return {avx512::combine_block, avx512::compensate_block};
  if (instruction_set() == Isa::avx2) return {avx2::combine_block, avx2::compensate_block};
#endif
  return {portable::combine_block, portable::compensate_block};
}

Scalar scalar_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
    case at::kComplexDouble: return Scalar::f64;
    case at::kBFloat16: return Scalar::bf16;
    case at::kHalf: return Scalar::f16;
    case at::kFloat:
    case at::kComplexFloat: return Scalar::f32;
    default: TORCH_CHECK(false, "rk_combine_cpu: dtype ", type, " is not one of float16 to complex128");
  }
}

// A leaf of the state: what its combination reads, in the storage order of `out`, with one dtype for all rates.
struct Leaf {
  at::Tensor out;
  at::Tensor y;
  std::vector<at::Tensor> ks;
  std::vector<const void*> pointers;
  Combination combination;
  int64_t scalars;
};

constexpr size_t kLeastPooled = size_t(1) << 20;  // bytes from which mapping pages in anew costs more than a pass

// As at::empty_like; large ones are of working memory.
at::Tensor result_like(const at::Tensor& y, at::ScalarType type) {
  if (y.nbytes() < kLeastPooled || !y.is_non_overlapping_and_dense()) return at::empty_like(y, y.options().dtype(type));
  return working_tensor(y.sizes(), y.strides(), type);
}

// The rates of one leaf are every `leaves`-th of `ks`, which holds all leaves of the first term, then of the second ...
Leaf prepare(const at::Tensor& y, at::TensorList ks, at::ArrayRef<double> coefficients, size_t leaf, size_t leaves) {
  Leaf o;
  o.out = result_like(y, y.scalar_type());
  o.y = in_storage_order(y, o.out, y.scalar_type());
  o.ks.reserve(coefficients.size());
  for (size_t i = leaf; i < ks.size(); i += leaves) o.ks.push_back(ks[i]);
  const at::ScalarType type = rate_type(y, o.ks);
  o.pointers.reserve(o.ks.size());
  for (at::Tensor& k : o.ks) {
    k = in_storage_order(k, o.out, type);
    o.pointers.push_back(k.const_data_ptr());
  }
  o.scalars = y.numel() * (y.is_complex() ? 2 : 1);
  o.combination = {scalar_of(y.scalar_type()), scalar_of(type),     o.y.const_data_ptr(),
                   o.pointers.data(),          coefficients.data(), static_cast<int>(coefficients.size()),
                   o.out.mutable_data_ptr()};
  return o;
}

std::vector<Leaf> prepare(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients) {
  check_leaves("rk_combine_cpu", ys, ks, coefficients.size());
  std::vector<Leaf> leaves;
  leaves.reserve(ys.size());
  for (size_t i = 0; i < ys.size(); ++i) leaves.push_back(prepare(ys[i], ks, coefficients, i, ys.size()));
  return leaves;
}

struct Block {
  size_t leaf;
  int64_t begin, size;
};

std::vector<Block> blocks_of(const std::vector<Leaf>& leaves) {
  std::vector<Block> blocks;
  for (size_t i = 0; i < leaves.size(); ++i)
    for (int64_t begin = 0; begin < leaves[i].scalars; begin += kBlock)
      blocks.push_back({i, begin, std::min(kBlock, leaves[i].scalars - begin)});
  return blocks;
}

// Calls `one` with the number of each block, on several threads unless there is little to do.
template <typename One>
void for_each(const std::vector<Block>& blocks, const One& one) {
  int64_t scalars = 0;
  for (const Block& block : blocks) scalars += block.size;
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t grain = scalars < 16 * kBlock ? std::max<int64_t>(count, 1) : 16;  // many small leaves: one thread
  at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) one(b);
  });
}

// Combines every block of every leaf and returns the sum of squares of the weighted error, 0 without `norm`.
double combine(const std::vector<Leaf>& leaves, const ErrorNorm* norm) {
  const std::vector<Block> blocks = blocks_of(leaves);
  std::vector<double> partial(norm == nullptr ? 0 : blocks.size(), 0.0);
  const CombineBlock combine_one = kernels().combine;
  for_each(blocks, [&](int64_t b) {
    const auto [i, begin, size] = blocks[b];
    if (norm == nullptr) {
      combine_one(leaves[i].combination, nullptr, begin, size);
    } else {
      const ErrorNorm own{norm->error, norm->rtol, norm->atol, leaves[i].out.is_complex()};
      partial[b] = combine_one(leaves[i].combination, &own, begin, size);
    }
  });
  double total = 0.0;  // in block order: the same bits for any number of threads
  for (double p : partial) total += p;
  return total;
}

std::vector<at::Tensor> results(std::vector<Leaf>& leaves) {
  std::vector<at::Tensor> out;
  out.reserve(leaves.size());
  for (Leaf& leaf : leaves) out.push_back(std::move(leaf.out));
  return out;
}

std::vector<at::Tensor> rk_combine(at::TensorList ys, at::TensorList ks, at::ArrayRef<double> coefficients) {
  record("rk_combine", "cpu", "accumulate");
  std::vector<Leaf> leaves = prepare(ys, ks, coefficients);
  combine(leaves, nullptr);
  return results(leaves);
}

std::tuple<std::vector<at::Tensor>, at::Tensor> rk_combine_error(at::TensorList ys, at::TensorList ks,
                                                                 at::ArrayRef<double> coefficients,
                                                                 at::ArrayRef<double> errors, double rtol,
                                                                 double atol) {
  record("rk_combine_error", "cpu", "accumulate");
  TORCH_CHECK(errors.size() == coefficients.size(), "rk_combine_error_cpu: ", errors.size(), " error coefficients for ",
              coefficients.size(), " coefficients");
  std::vector<Leaf> leaves = prepare(ys, ks, coefficients);
  const ErrorNorm norm{errors.data(), rtol, atol, false};
  const double total = combine(leaves, &norm);
  int64_t elements = 0;
  bool wide = false;
  for (const at::Tensor& y : ys) {
    elements += y.numel();
    wide = wide || y.scalar_type() == at::kDouble || y.scalar_type() == at::kComplexDouble;
  }
  const double value = elements == 0 ? 0.0 : std::sqrt(total / static_cast<double>(elements));
  const at::Tensor result = at::full({}, value, at::TensorOptions(wide ? at::kDouble : at::kFloat));
  return {results(leaves), result};
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>> rk_combine_compensated(at::TensorList ys,
                                                                                    at::TensorList cs,
                                                                                    at::TensorList ks,
                                                                                    at::ArrayRef<double> coefficients) {
  record("rk_combine_compensated", "cpu", "accumulate");
  check_compensations("rk_combine_compensated_cpu", ys, cs);
  std::vector<Leaf> leaves = prepare(ys, ks, coefficients);
  std::vector<at::Tensor> held, c1s;
  std::vector<Compensation> kept;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const at::Tensor& out = leaves[i].out;
    c1s.push_back(result_like(out, sum_type(out.scalar_type())));
    if (!cs.empty()) held.push_back(in_storage_order(cs[i], out, c1s[i].scalar_type()));
    kept.push_back({cs.empty() ? nullptr : held[i].const_data_ptr(), c1s[i].mutable_data_ptr()});
  }
  const std::vector<Block> blocks = blocks_of(leaves);
  const CompensateBlock compensate_one = kernels().compensate;
  for_each(blocks, [&](int64_t b) {
    const auto [i, begin, size] = blocks[b];
    compensate_one(leaves[i].combination, kept[i], begin, size);
  });
  return {results(leaves), std::move(c1s)};
}

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl("rk_combine_cpu", TORCH_FN(contnet_fast::rk_combine));
  m.impl("rk_combine_error_cpu", TORCH_FN(contnet_fast::rk_combine_error));
  m.impl("rk_combine_compensated_cpu", TORCH_FN(contnet_fast::rk_combine_compensated));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "C++ implementations of contnet_fast's ops";
  m.def("interface", [] { return 12; }, "Changes with what Python expects of this module.");
  m.def("built_for_torch", [] { return std::string(TORCH_VERSION); }, "The version of torch that this was built for.");
  m.def("compiler", [] { return std::string(CONTNET_FAST_COMPILER); }, "The compiler that built this.");
  m.def(
      "cuda_chips", [] { return std::vector<std::string> CONTNET_FAST_CHIPS; },
      "Compute capabilities of the CUDA code in it, \"+PTX\" for PTX; empty without CUDA.");
  m.def("cuda_release", [] { return std::string(CONTNET_FAST_NVCC); }, "The release of nvcc that made that code.");
  m.def("without_cuda", [] { return std::string(CONTNET_FAST_WITHOUT_CUDA); }, "Why it was built without CUDA.");
  m.def(
      "instruction_set", [] { return contnet_fast::name(contnet_fast::instruction_set()); },
      "The instruction set in use.");
  m.def("instruction_sets", &contnet_fast::instruction_sets, "Those that this CPU can run.");
  m.def("instruction_set_reasons", &contnet_fast::instruction_set_reasons,
        "All of them, each with why it cannot run here; empty where it can.");
  m.def("limit_instruction_set", &contnet_fast::limit_instruction_set, "Use none that comes after this one.");
  m.def("use_instruction_set", &contnet_fast::use_instruction_set, "Use another one; for tests.");
  m.def("pooled_bytes", &contnet_fast::pooled_bytes, "Bytes of working memory held for the next call.");
  m.def(
      "release_pool", [] { contnet_fast::forget_packed_weights(), contnet_fast::release_pool(); },
      "Give that memory back to the system, and that of transformed weights.");
  m.def("record", &contnet_fast::start_recording, "Start or stop logging runs.");
  m.def("take_runs", &contnet_fast::take_runs,
        "(op, backend, level, launches) of the runs since the last call, in order.");
  contnet_fast::register_plans(m);
  contnet_fast::register_tile_products(m);
  contnet_fast::register_step(m);
}
