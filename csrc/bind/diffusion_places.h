// Places of the tensors of the diffusion ops: nodes, then operands (contnet_fast/fields/diffusion/spec.py).
#pragma once

namespace contnet_fast {

enum Place {
  kScale,
  kDiagonal,
  kIndptr,
  kIndices,
  kValues,
  kBackIndptr,
  kBackIndices,
  kBackPlaces,
  kSource,
  kMixing,
  kPlaces
};
constexpr int kCoefficients = kIndptr;  // functions of depth

}  // namespace contnet_fast
