// 3x3 convolutions of channels-last maps by Winograd F(2x2, 3x3) or F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308), or
// directly with bfloat16 operands, with what comes before and after them. Plain pointers, no torch types: the solver
// owns memory, order and threads.
//
// A map is [height][width][padded] with zeros in the channels beyond the real ones. Tiles are 2x2 or 4x4 pixels, with 16
// or 36 frequencies; a unit is `group` rows of tiles of one image, the smallest piece of work, whatever the number of
// threads.
#pragma once

#include <cstdint>

#include "runtime/limits.h"

namespace contnet_fast {

struct Geometry {
  int height, width, channels;
  int padded;   // channels of a map: 4, 8 or a multiple of 16
  int tile;     // pixels of a tile's output in one dimension: 2 or 4
  int tiles_x;  // tiles in a row
  int group;    // rows of tiles in a unit
  int units;    // units in an image
  bool direct;  // bfloat16 products of pixels and taps, not of frequencies
  int64_t map() const { return int64_t(height) * width * padded; }
  int64_t weights() const {
    return direct ? int64_t(9) * padded * padded : int64_t(tile + 2) * (tile + 2) * channels * padded;
  }
  int unit_rows() const { return tile * group; }
  int rows(int unit) const {  // image rows of a unit
    const int first = unit_rows() * unit, last = first + unit_rows();
    return (last < height ? last : height) - first;
  }
};

inline int padded_channels(int channels) { return channels <= 4 ? 4 : channels <= 8 ? 8 : (channels + 15) / 16 * 16; }

constexpr int kMostRows = 32;  // of pixels in a unit

// With so many tiles in a unit as `tiles`, or as its size allows, and as many in each.
inline Geometry tiled(int height, int width, int channels, int padded, int tile, int tiles) {
  const int tiles_x = (width + tile - 1) / tile, tile_rows = (height + tile - 1) / tile;
  int group = tiles / (tiles_x > 0 ? tiles_x : 1);
  if (group > kMostRows / tile) group = kMostRows / tile;
  if (group > tile_rows) group = tile_rows;
  if (group < 1) group = 1;
  int units = (tile_rows + group - 1) / group;
  if (units > 0) group = (tile_rows + units - 1) / units, units = (tile_rows + group - 1) / group;
  return {height, width, channels, padded, tile, tiles_x, group, units, false};
}

constexpr int kManyTiles = 36;  // for so many the weights of a wide convolution are read once

inline Geometry geometry(int height, int width, int channels) {
  const int padded = padded_channels(channels);
  // up to 64 channels transforms share L1 with the products, beyond that the weights no longer fit L2 and are read once
  // for more tiles
  return tiled(height, width, channels, padded, 2, padded <= 16 ? 32 : padded > 64 ? kManyTiles : 512 / padded);
}

// Where errors of 1e-5 are allowed, F(4x4, 3x3) is faster on maps of several tiles, or batches of many, unless these hang
// over by too much or their weights, 2.25 times those of F(2x2, 3x3), are read for too few of them.
inline Geometry coarse_geometry(int64_t batch, int height, int width, int channels) {
  const Geometry two = geometry(height, width, channels);
  // small units, so that one image is work for several threads, until reading the weights is what takes the time
  const int most = two.padded > 128 ? kManyTiles : two.padded > 64 ? 16 : 8;
  const Geometry four = tiled(height, width, channels, two.padded, 4, most);
  const int64_t pairs = int64_t(two.tiles_x) * ((height + 1) / 2), tiles = int64_t(four.tiles_x) * ((height + 3) / 4);
  const bool fewer = 5 * 16 * pairs >= 6 * 36 * tiles;  // products: by a sixth or more
  const bool several = tiles >= 4 && int64_t(channels) * channels <= 2048 * tiles;
  const bool many = two.padded > 64 && batch * tiles >= 64;  // images are convolved together then
  return fewer && (several || many) ? four : two;
}

// Of bfloat16 products, whose tiles take 16 channels at a time.
inline Geometry direct_geometry(int height, int width, int channels) {
  const int tiles_x = (width + 1) / 2, tile_rows = (height + 1) / 2, padded = (channels + 15) / 16 * 16;
  // values that a unit aims at: its operands and results share L1 with some weights, or L2 with all of them
  const int values = padded <= 64 ? 8192 : 32768;
  int group = values / (4 * padded * (tiles_x > 0 ? tiles_x : 1));
  if (group > tile_rows) group = tile_rows;
  if (group < 1) group = 1;
  return {height, width, channels, padded, 2, tiles_x, group, (tile_rows + group - 1) / group, true};
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

// Channels [from, to) of a map: multiples of 16, or all.
struct Channels {
  int from, to;
  int count() const { return to - from; }
};

// A convolution of one image, and beside it the gradient of another convolution's weights, whose output gradient is
// `in` and whose input is `activation`.
template <typename T>
struct ConvJob {
  Channels out{};  // of the result; all of them where gradients of weights are wanted
  Operand<T> in;
  const T* weights = nullptr;  // [frequencies][channels][padded], or as the kernels packed them
  Result<T> result;
  const Operand<T>* activation = nullptr;
  T* weight_grad = nullptr;  // [frequencies][channels][padded], directly [9][padded][padded], added to
  T* bias_grad = nullptr;    // [padded], added to
};

// An image in any strides.
template <typename T>
struct Image {
  T* data;
  int64_t channel, row, column;
};

// A 3x3 convolution of an image of few channels to a map, a unit of the map at a time.
template <typename T>
struct StemKernels {
  // what a unit reads of the image: [channels][its rows, one above and one below][a pixel, the row, a pixel], with zeros
  // beyond the image
  void (*rows)(const Geometry&, const Image<const T>&, int channels, int unit, T* out);
  // such rows by weights [channels][9][padded] to the rows of a map
  void (*conv)(const Geometry&, int channels, int unit, const T* rows, const T* weights, T* map);
  // the gradient of the weights, added to
  void (*gradient)(const Geometry&, int channels, int unit, const T* rows, const T* map_grad, T* sums);
};

template <typename T>
struct ConvKernels {
  int64_t (*scratch)(const Geometry&, int images);  // elements that convolutions of so many images need
  // units [first, last) of one image
  void (*conv)(const Geometry&, const ConvJob<T>&, int first, int last, T* scratch);
  // The only unit of each of several images by the same weights, which are read once for all of them, and with sums in
  // the same memory. The bits are those of one after another. Null: they go alone.
  void (*conv_images)(const Geometry&, const ConvJob<T>*, int images, T* scratch);
  // weights [co][ci][3][3] of some output channels, from the first of these on, to the transformed [frequencies][ci][co],
  // and to those of the data gradient, with [co][ci]
  void (*pack)(const Geometry&, Channels, const T* weights, T* transformed, T* backward, T* scratch);
  // gradient of the transformed weights to that of the weights, [co][ci][3][3], of some output channels
  void (*unpack)(const Geometry&, Channels, const T* transformed, T* gradient, T* scratch);
  // an operand or a combination of maps written to a map, rows [first, last)
  void (*write)(const Geometry&, const Operand<T>&, T* out, int first, int last);
  void (*combine)(const Geometry&, const Destination<T>&, int first, int last);
  // the sums of a unit of a map, as `conv` makes them of its first destination
  void (*sum)(const Geometry&, const T* map, const Result<T>&, int unit, Channels);
  void (*load)(const Geometry&, const Image<const T>&, T* map);
  void (*store)(const Geometry&, const T* map, const Image<T>&);
  StemKernels<T> stem;  // null where products are those of bfloat16
};

// The kernels of each instruction set, for maps of so many padded channels and tiles of that size.
#define CONTNET_FAST_DECLARE(isa)                           \
  namespace isa {                                           \
  const ConvKernels<float>& conv_f32(int padded, int tile); \
  const ConvKernels<double>& conv_f64(int padded);          \
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
