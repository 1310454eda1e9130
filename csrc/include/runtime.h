// What every op shares: the instruction set in use, and the log of runs.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace contnet_fast {

enum class Isa { portable, avx2, avx512 };

Isa instruction_set();
std::string name(Isa);
std::vector<std::string> instruction_sets();  // those that this CPU can run
void use_instruction_set(const std::string&);

// (op, backend, level, launches of kernels on a GPU)
using Run = std::tuple<std::string, std::string, std::string, std::optional<int>>;

void record(const char* op, const char* backend, const char* level, std::optional<int> launches = std::nullopt);
void start_recording(bool on);
std::vector<Run> take_runs();  // since the last call, in order

}  // namespace contnet_fast
