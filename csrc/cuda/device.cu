// What launchers ask of the current device.

#include "conv_launch.h"
#include "primitives.h"

namespace contnet_fast::cuda {

DeviceFacts current_device() { return device_facts(); }

}  // namespace contnet_fast::cuda
