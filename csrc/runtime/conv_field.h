// What every backend knows of the convolutional field. No torch types.
#pragma once

#include "runtime/keep.h"

namespace contnet_fast {

// The nodes (contnet_fast.ConvNodes), in order.
enum Node {
  kWeight1,
  kBias1,
  kWeight2,
  kBias2,
  kGamma1,
  kBeta1,
  kMean1,
  kVar1,
  kGamma2,
  kBeta2,
  kMean2,
  kVar2,
  kSkip,
  kNodes
};

constexpr bool is_weight(int node) { return node == kWeight1 || node == kWeight2; }

}  // namespace contnet_fast
