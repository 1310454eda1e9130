// Registers the C++ implementations of the ops, and the Python module with build information and the log of runs.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "contnet_fast_build.h"
#include "include/conv_solve.h"
#include "include/leaves.h"
#include "include/pool.h"
#include "include/rk_combine.h"
#include "include/runtime.h"
#include "include/working_tensor.h"

namespace contnet_fast {
namespace {

CombineBlock combine_block() {
#ifdef CONTNET_FAST_X86
  if (instruction_set() == Isa::avx512) return avx512::combine_block;
  if (instruction_set() == Isa::avx2) return avx2::combine_block;
#endif
  return portable::combine_block;
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
at::Tensor result_like(const at::Tensor& y) {
  if (y.nbytes() < kLeastPooled || !y.is_non_overlapping_and_dense()) return at::empty_like(y);
  return working_tensor(y.sizes(), y.strides(), y.scalar_type());
}

// The rates of one leaf are every `leaves`-th of `ks`, which holds all leaves of the first term, then of the second ...
Leaf prepare(const at::Tensor& y, at::TensorList ks, at::ArrayRef<double> coefficients, size_t leaf, size_t leaves) {
  Leaf o;
  o.out = result_like(y);
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
  o.combination = {scalar_of(y.scalar_type()), scalar_of(type),   o.y.const_data_ptr(),
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

// Combines every block of every leaf and returns the sum of squares of the weighted error, 0 without `norm`.
double combine(const std::vector<Leaf>& leaves, const ErrorNorm* norm) {
  struct Block {
    const Leaf* leaf;
    int64_t begin;
  };
  std::vector<Block> blocks;
  int64_t scalars = 0;
  for (const Leaf& leaf : leaves) {
    scalars += leaf.scalars;
    for (int64_t begin = 0; begin < leaf.scalars; begin += kBlock) blocks.push_back({&leaf, begin});
  }
  std::vector<double> partial(norm == nullptr ? 0 : blocks.size(), 0.0);
  const CombineBlock combine_one = combine_block();
  const int64_t count = static_cast<int64_t>(blocks.size());
  const int64_t grain = scalars < 16 * kBlock ? std::max<int64_t>(count, 1) : 16;  // many small leaves: one thread
  at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const auto [leaf, begin] = blocks[b];
      const int64_t size = std::min(kBlock, leaf->scalars - begin);
      if (norm == nullptr) {
        combine_one(leaf->combination, nullptr, begin, size);
      } else {
        const ErrorNorm own{norm->error, norm->rtol, norm->atol, leaf->out.is_complex()};
        partial[b] = combine_one(leaf->combination, &own, begin, size);
      }
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
  TORCH_CHECK(errors.size() == coefficients.size(), "rk_combine_error_cpu: ", errors.size(),
              " error coefficients for ", coefficients.size(), " coefficients");
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

}  // namespace
}  // namespace contnet_fast

TORCH_LIBRARY_IMPL(contnet_fast, CPU, m) {
  m.impl("rk_combine_cpu", TORCH_FN(contnet_fast::rk_combine));
  m.impl("rk_combine_error_cpu", TORCH_FN(contnet_fast::rk_combine_error));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "C++ implementations of contnet_fast's ops";
  m.def("interface", [] { return 4; }, "Changes with what Python expects of this module.");
  m.def("built_for_torch", [] { return std::string(TORCH_VERSION); }, "The version of torch that this was built for.");
  m.def("compiler", [] { return std::string(CONTNET_FAST_COMPILER); }, "The compiler that built this.");
  m.def("cuda_chips", [] { return std::vector<std::string> CONTNET_FAST_CHIPS; },
        "Compute capabilities of the CUDA code in it, \"+PTX\" for PTX; empty without CUDA.");
  m.def("cuda_release", [] { return std::string(CONTNET_FAST_NVCC); }, "The release of nvcc that made that code.");
  m.def("without_cuda", [] { return std::string(CONTNET_FAST_WITHOUT_CUDA); }, "Why it was built without CUDA.");
  m.def("instruction_set", [] { return contnet_fast::name(contnet_fast::instruction_set()); }, "The instruction set in use.");
  m.def("instruction_sets", &contnet_fast::instruction_sets, "Those that this CPU can run.");
  m.def("use_instruction_set", &contnet_fast::use_instruction_set, "Use another one; for tests.");
  m.def("pooled_bytes", &contnet_fast::pooled_bytes, "Bytes of working memory held for the next call.");
  m.def("release_pool", [] { contnet_fast::forget_packed_weights(), contnet_fast::release_pool(); },
        "Give that memory back to the system, and that of transformed weights.");
  m.def("record", &contnet_fast::start_recording, "Start or stop logging runs.");
  m.def("take_runs", &contnet_fast::take_runs, "(op, backend, level, launches) of the runs since the last call, in order.");
}
