// What a solve keeps for its backward pass. No torch types.
#pragma once

namespace contnet_fast {

// What the forward pass leaves for backward besides the input; nothing: there is no backward pass.
enum class Keep { nothing, input, steps, everything };

}  // namespace contnet_fast
