// Products of bfloat16 matrices with sums in float32, in tiles of 16 x 16 results: what kernels ask of a matrix unit.
//
// Three bodies implement it, each a struct `Tiles` with `void multiply(const TileProduct&)`, made by the thread that
// uses it and for that long: amx-inl.h, avx512_bf16-inl.h, and portable-inl.h, which has the arithmetic of AMX bit by
// bit. For any of them a result has the same bits wherever it lies among others.
#pragma once

#include <cstdint>

#include "runtime/export.h"

namespace contnet_fast {

using Bfloat16 = uint16_t;  // its bits

constexpr int kTileRows = 16, kTileColumns = 16;
constexpr int kTileDepth = 32;  // of a step of AMX

// c[m][n] (+)= sum over taps t and k < depth of a[t][m][k] b[t][k][n]. Distances are in values of the matrix.
struct TileProduct {
  const Bfloat16* a;      // 16 rows of block i begin at a + block[i]
  const int64_t* block;   // [blocks]
  int64_t a_row, a_tap;   // from row to row, from tap to tap
  const Bfloat16* b;      // pairs of rows interleaved: [k / 2][n][2]
  int64_t b_pair, b_tap;  // from pair to pair, from tap to tap
  int64_t b_columns;      // from 16 columns to the next 16
  float* c;               // row 16 i + m, all columns
  int64_t c_row;          // at least 16 * columns
  int blocks, columns;    // in units of 16
  int taps, depth;        // depth: a multiple of 16
  bool add;
};

// One product by each body, for tests; null where the compiler could not make it.
using MultiplyTiles = void (*)(const TileProduct&);
namespace portable {
CONTNET_FAST_API MultiplyTiles multiply_tiles();
}
namespace avx512_bf16 {
CONTNET_FAST_API MultiplyTiles multiply_tiles();
}
namespace amx {
CONTNET_FAST_API MultiplyTiles multiply_tiles();
}

}  // namespace contnet_fast
