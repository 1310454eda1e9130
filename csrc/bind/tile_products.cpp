#include "bind/tile_products.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/tiles/tiles.h"
#include "runtime/isa.h"

namespace contnet_fast {
namespace {

MultiplyTiles find(const std::string& isa) {
  for (const std::string& one : instruction_sets())
    if (one == isa) {
      if (isa == name(Isa::portable)) return portable::multiply_tiles();
      if (isa == name(Isa::avx512_bf16)) return avx512_bf16::multiply_tiles();
      if (isa == name(Isa::amx)) return amx::multiply_tiles();
    }
  throw std::invalid_argument("isa: got '" + isa + "', which has no tiles here");
}

// c + a b for bits of bfloat16, a [rows, depth] and b [depth, columns], sizes in multiples of 16.
std::vector<float> multiply(const std::string& isa, const std::vector<uint16_t>& a, const std::vector<uint16_t>& b,
                            std::vector<float> c, int rows, int depth, int columns) {
  if (rows % 16 || depth % 16 || columns % 16 || a.size() != size_t(rows) * depth ||
      b.size() != size_t(depth) * columns || (!c.empty() && c.size() != size_t(rows) * columns))
    throw std::invalid_argument("a, b, c: of other sizes than rows, depth, columns, which are multiples of 16");
  std::vector<uint16_t> pairs(b.size());
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < columns; ++n) pairs[(k / 2 * columns + n) * 2 + k % 2] = b[k * columns + n];
  std::vector<int64_t> block;
  for (int i = 0; i < rows / 16; ++i) block.push_back(int64_t(16) * i * depth);
  const bool add = !c.empty();
  c.resize(size_t(rows) * columns);
  find(isa)({a.data(), block.data(), depth, 0, pairs.data(), 2 * columns, 0, 32, c.data(), columns, rows / 16,
             columns / 16, 1, depth, add});
  return c;
}

}  // namespace

void register_tile_products(pybind11::module_& m) {
  m.def("multiply_tiles", &multiply,
        "A product of bfloat16 matrices, given as bits, by the tiles of an instruction set.");
}

}  // namespace contnet_fast
