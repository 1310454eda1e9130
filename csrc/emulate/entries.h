// How an entry with C linkage hands a fault to its caller.
#pragma once

#include "emulate/machine.h"

namespace contnet_fast::cuda {

// null, or what went wrong; good until the next call
template <typename Call>
const char* guarded(Call&& call) {
  static std::string message;
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace contnet_fast::cuda
