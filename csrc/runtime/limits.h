// Limits that C++ and Python share, from one file.
#pragma once

namespace contnet_fast::limits {

#define LIMIT(name, value) constexpr int name = value;
#define CHIP(major, minor, kib)
#include "../contnet_fast/limits.h"
#undef LIMIT
#undef CHIP

// KiB of shared memory that a block may have on the chip that has most.
constexpr int most_shared() {
  int most = LEAST_SHARED;
#define LIMIT(name, value)
#define CHIP(major, minor, kib) most = most > kib ? most : kib;
#include "../contnet_fast/limits.h"
#undef LIMIT
#undef CHIP
  return most;
}

}  // namespace contnet_fast::limits
