// The part of the Python module that answers what kernels plan.
#pragma once

#include <pybind11/pybind11.h>

namespace contnet_fast {

void register_plans(pybind11::module_&);

}  // namespace contnet_fast
