// What launchers ask of the current device, and how often they launched.

#include "cuda/lib/primitives.h"

namespace contnet_fast::cuda {
namespace {

KERNEL(32)
nothing() {}

}  // namespace

int64_t& launch_count() {
  static thread_local int64_t count = 0;
  return count;
}

DeviceFacts current_device() { return device_facts(nothing); }

}  // namespace contnet_fast::cuda
