// The Python module: build information, plans and the log of runs. The ops are in a library of their own, which needs no
// Python: libcontnet_fast.so.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <string>
#include <vector>

#include "contnet_fast_build.h"
#include "bind/plans.h"
#include "bind/step.h"
#include "bind/tile_products.h"
#include "cpu/conv/conv_solve.h"
#include "runtime/isa.h"
#include "runtime/pool.h"
#include "runtime/runs.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "C++ implementations of contnet_fast's ops";
  m.def("interface", [] { return 15; }, "Changes with what Python expects of this module.");
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
