// The primitives that kernels are written against (docs/cuda.md). nvcc: instructions. Any other C++17 compiler: the
// emulator.
//
// Fragments of products (PTX ISA, "Matrix Fragments for mma"), with g = lane / 4 and t = lane % 4, two 16-bit values in
// a register, the lower one first:
//
//   mma_m16n8k16   A[m][k]  a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t + 8..)
//                  B[k][n]  b[0] = (2t.., g), b[1] = (2t + 8.., g)
//                  C[m][n]  c[0] = (g, 2t), c[1] = (g, 2t + 1), c[2] = (g + 8, 2t), c[3] = (g + 8, 2t + 1)
//   mma_m16n8k8    A[m][k]  a[0] = (g, t), a[1] = (g + 8, t), a[2] = (g, t + 4), a[3] = (g + 8, t + 4)     (TF32)
//                  B[k][n]  b[0] = (t, g), b[1] = (t + 4, g);  C as above
//
// ldmatrix<N> loads N matrices of 8 rows of 16 bytes; lane 8 i + r gives the address of row r of matrix i. Register i
// of a lane is then 4 bytes of matrix i: (g, 2t..) of 16-bit values, (g, t) of 32-bit values. ldmatrix_trans<N>: (2t..,
// g). So with values stored [row][column]:
//
//   A[m][k], 16-bit   ldmatrix<4>, lane l the address of (m = l % 16, k = l / 16 * 8)
//   B stored [n][k]   ldmatrix<4>, lane l the address of (n = l % 8, k = l / 8 * 8): b of two products of k = 16
//   B stored [k][n]   ldmatrix_trans<4>, lane l the address of (k = l % 16, n = l / 16 * 8): b of two products side by side in n
//   A[m][k], 32-bit   ldmatrix<4>, lane l the address of (m = l % 16, k = l / 16 * 4)
#pragma once

#include "cuda/lib/types.h"

// Whether a test has planted the fault of this number in a kernel (tests/support/cuda/planted.h); else the constant
// false.
#ifdef PLANTED_FAULT
#define FAULT_POINT(number) (PLANTED_FAULT == (number))
#else
#define FAULT_POINT(number) false
#endif

#ifdef __CUDACC__
#include "cuda/lib/instructions.h"
#else
#include "emulate/primitives.h"
#endif
