// Attempted steps of adaptive methods for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace contnet_fast {

void register_step(pybind11::module_& m);

}  // namespace contnet_fast
