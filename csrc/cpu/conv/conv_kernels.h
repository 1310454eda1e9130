// 3x3 convolutions of channels-last maps by Winograd F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), or directly with
// bfloat16 operands, with what comes before and after them. Plain pointers, no torch types: the solver owns memory,
// order and threads.
//
// A map is [height][width][padded] with zeros in the channels beyond the real ones. Tiles are 2x2 pixels; a unit is
// `group` rows of tiles of one image, the smallest piece of work, whatever the number of threads.
#pragma once

#include <cstdint>

#include "runtime/limits.h"

namespace contnet_fast {

struct Geometry {
  int height, width, channels;
  int padded;   // channels of a map: 4, 8 or a multiple of 16
  int tiles_x;  // tiles in a row
  int group;    // rows of tiles in a unit
  int units;    // units in an image
  bool direct;  // bfloat16 products of pixels and taps, not of frequencies
  int64_t map() const { return int64_t(height) * width * padded; }
  int64_t weights() const { return direct ? int64_t(9) * padded * padded : int64_t(16) * channels * padded; }
  int rows(int unit) const {  // image rows of a unit
    const int first = 2 * group * unit, last = first + 2 * group;
    return (last < height ? last : height) - first;
  }
};

inline int padded_channels(int channels) { return channels <= 4 ? 4 : channels <= 8 ? 8 : (channels + 15) / 16 * 16; }

constexpr int kMostRows = 16;  // of tiles in a unit

inline Geometry geometry(int height, int width, int channels) {
  const int tiles_x = (width + 1) / 2, tile_rows = (height + 1) / 2, padded = padded_channels(channels);
  // tiles that a unit aims at: up to 64 channels their transforms share L1 with the products, beyond that the weights
  // no longer fit L2 and are read once for more tiles
  const int tiles = padded <= 16 || padded > 64 ? 32 : 512 / padded;
  int group = tiles / (tiles_x > 0 ? tiles_x : 1);
  if (group > kMostRows) group = kMostRows;
  if (group > tile_rows) group = tile_rows;
  if (group < 1) group = 1;
  return {height, width, channels, padded, tiles_x, group, (tile_rows + group - 1) / group, false};
}

// Of bfloat16 products, whose tiles take 16 channels at a time.
inline Geometry direct_geometry(int height, int width, int channels) {
  const int tiles_x = (width + 1) / 2, tile_rows = (height + 1) / 2, padded = (channels + 15) / 16 * 16;
  // values that a unit aims at: its operands and results share L1 with some weights, or L2 with all of them
  const int values = padded <= 64 ? 8192 : 32768;
  int group = values / (4 * padded * (tiles_x > 0 ? tiles_x : 1));
  if (group > tile_rows) group = tile_rows;
  if (group < 1) group = 1;
  return {height, width, channels, padded, tiles_x, group, (tile_rows + group - 1) / group, true};
}

// scale * map + shift + other_scale * other, per channel, then relu, then kept only where other > 0
template <typename T>
struct Operand {
  const T* map = nullptr;
  const T* scale = nullptr;  // null: 1
  const T* shift = nullptr;  // null: 0
  const T* other = nullptr;
  const T* other_scale = nullptr;  // null: 0
  bool relu = false;
  bool mask_by_other = false;
};

template <typename T>
struct Term {
  const T* map;
  T coefficient;
};

constexpr int kTerms = 1 + limits::MOST_STAGES;  // the state and the stages

// out = own * value + sum of terms
template <typename T>
struct Destination {
  T* out = nullptr;
  T own = T(1);
  int terms = 0;
  Term<T> term[kTerms];
  void add(const T* map, T coefficient) { term[terms++] = {map, coefficient}; }
};

// What is summed per channel over the first destination of a unit.
enum class Sums {
  none,
  moments,   // mean, and sum of squared distances from it
  gradient,  // sum of g, and sum of g * (with - center)
};

// value = scale * [relu](convolution + bias) + shift, kept where mask_scale * mask + mask_shift > 0
template <typename T>
struct Result {
  const T* bias = nullptr;
  bool relu = false;
  const T* scale = nullptr;
  const T* shift = nullptr;
  const T* mask = nullptr;
  const T* mask_scale = nullptr;
  const T* mask_shift = nullptr;
  int destinations = 0;
  Destination<T> destination[3];
  Sums sums = Sums::none;
  const T* with = nullptr;
  const T* center = nullptr;
  T* partial = nullptr;  // [units][2][padded]
};

// A convolution of one image, and beside it the gradient of another convolution's weights, whose output gradient is
// `in` and whose input is `activation`.
template <typename T>
struct ConvJob {
  Operand<T> in;
  const T* weights = nullptr;  // [16][channels][padded], or as the kernels packed them
  Result<T> result;
  const Operand<T>* activation = nullptr;
  T* weight_grad = nullptr;  // [16][channels][padded], directly [9][padded][padded], added to
  T* bias_grad = nullptr;    // [padded], added to
};

// An image in any strides.
template <typename T>
struct Image {
  T* data;
  int64_t channel, row, column;
};

template <typename T>
struct ConvKernels {
  int64_t (*scratch)(const Geometry&);  // elements that `conv` needs
  // units [first, last) of one image
  void (*conv)(const Geometry&, const ConvJob<T>&, int first, int last, T* scratch);
  // weights [co][ci][3][3] to the transformed [16][ci][co], and to those of the data gradient, [16][co][ci]
  void (*pack)(const Geometry&, const T* weights, T* transformed, T* backward, T* scratch);
  // gradient of the transformed weights to that of the weights, [co][ci][3][3]
  void (*unpack)(const Geometry&, const T* transformed, T* gradient, T* scratch);
  // an operand or a combination of maps written to a map, rows [first, last)
  void (*write)(const Geometry&, const Operand<T>&, T* out, int first, int last);
  void (*combine)(const Geometry&, const Destination<T>&, int first, int last);
  // the sums of a unit of a map, as `conv` makes them of its first destination
  void (*sum)(const Geometry&, const T* map, const Result<T>&, int unit);
  void (*load)(const Geometry&, const Image<const T>&, T* map);
  void (*store)(const Geometry&, const T* map, const Image<T>&);
};

// The kernels of each instruction set, for maps of so many padded channels.
#define CONTNET_FAST_DECLARE(isa)           \
  namespace isa {                           \
  const ConvKernels<float>& conv_f32(int);  \
  const ConvKernels<double>& conv_f64(int); \
  }
CONTNET_FAST_DECLARE(portable)
#ifdef CONTNET_FAST_X86
CONTNET_FAST_DECLARE(avx2)
CONTNET_FAST_DECLARE(avx512)
#endif
#undef CONTNET_FAST_DECLARE

// With products of bfloat16 operands, for maps of a direct geometry; null where the compiler could not make them.
namespace portable {
const ConvKernels<float>* conv_bf16();
}
namespace avx512_bf16 {
const ConvKernels<float>* conv_bf16();
}
namespace amx {
const ConvKernels<float>* conv_bf16();
}

}  // namespace contnet_fast
