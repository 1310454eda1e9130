// The log of runs: which op ran on which backend at which level.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/export.h"

namespace contnet_fast {

// (op, backend, level, launches of kernels on a GPU)
using Run = std::tuple<std::string, std::string, std::string, std::optional<int>>;

void record(const char* op, const char* backend, const char* level, std::optional<int> launches = std::nullopt);
CONTNET_FAST_API void start_recording(bool on);
CONTNET_FAST_API std::vector<Run> take_runs();  // since the last call, in order

}  // namespace contnet_fast
