// What tests ask of the tiles of each instruction set.
#pragma once

#include <pybind11/pybind11.h>

namespace contnet_fast {

void register_tile_products(pybind11::module_& m);

}  // namespace contnet_fast
