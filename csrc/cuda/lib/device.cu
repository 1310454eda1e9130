// What launchers ask of the current device.

#include "cuda/lib/primitives.h"

namespace contnet_fast::cuda {
namespace {

KERNEL(32) nothing() {}

}  // namespace

DeviceFacts current_device() { return device_facts(nothing); }

}  // namespace contnet_fast::cuda
